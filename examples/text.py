"""The text that the examples learn byte by byte, in batches, and the options of learning it."""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import torch

CONTEXT = 64


def read_text(path, batch):
    """A text as int64 bytes, the part of it to train on, and batches of windows of the rest."""
    raw = path.read_bytes() if path else "\n\n".join(topics.values()).encode()
    shortest = 10 * CONTEXT * (2 * batch + 1) + 1
    if len(raw) < shortest:
        raise ValueError(f"the text must have at least {shortest} bytes, got {len(raw)}")
    text = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()
    train, held_out = text.tensor_split([len(text) * 9 // 10])
    windows = held_out.unfold(0, CONTEXT + 1, 2 * CONTEXT)
    return text, train, windows.split(batch)[:-1]  # whole batches


def training_batch(text, step, batch):
    """A function of the step alone: all ranks draw the same, and a resumed run goes on."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - CONTEXT, (batch, 1), generator=generator)
    windows = text[starts + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


def entropies(text):
    """Nats a byte of the text to one who knows how frequent bytes are, and how frequent pairs."""
    pairs = torch.bincount(text[:-1] * 256 + text[1:], minlength=256 * 256).view(256, 256)
    single, double = (torch.special.entr(n / n.sum()).sum().item() for n in (pairs.sum(1), pairs))
    return single, double - single


def text_options(description, layers):
    """Those that examples of transformers have in common."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    add = parser.add_argument
    add("--text", type=Path, help="the text to learn (default: Python's manual)")
    add("--layers", type=int, default=layers)
    add("--width", type=int, default=128)
    add("--stages", type=int, help="by default one for each rank")
    add("--schedule", default="1f1b")
    add("--batch", type=int, default=16, help="windows of text in a step")
    add("--microbatches", type=int, default=4, help="pieces that a batch is cut into")
    add("--steps", type=int, default=50)
    add("--lr", type=float, default=1e-3)
    return parser
