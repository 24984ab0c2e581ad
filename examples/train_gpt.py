"""Trains a byte-level GPT on real English text, through a pipeline of two ranks.

    python examples/train_gpt.py                        # ranks are threads of this process
    torchrun --nproc-per-node 2 examples/train_gpt.py   # or processes: the same losses, bit for bit

With `--checkpoint FOLDER` it can be stopped; with `--resume` it goes on as if it never had.
"""

import argparse
import math
import os
import shutil
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

import pipert

CONTEXT, WIDTH, HEADS, LAYERS = 64, 128, 4, 4
LEARNING_RATE, WARMUP = 3e-3, 30


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.byte, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)

    def forward(self, x):
        return self.byte(x) + self.position.weight


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).transpose(1, 3)
        attended = functional.scaled_dot_product_attention(*heads.unbind(2), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def loss_fn(logits, target):
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def training_batch(text, step, args):
    """A function of the step alone: all ranks draw the same, and a resumed run goes on."""
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
    starts = torch.randint(len(text) - CONTEXT, (args.batch, 1), generator=generator)
    windows = text[starts + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


def learning_rate(step, num_steps):
    done = max(0.0, (step - WARMUP) / max(1, num_steps - WARMUP))
    return LEARNING_RATE * min((step + 1) / WARMUP, 0.05 + 0.475 * (1 + math.cos(math.pi * done)))


def save(folder, step, pipe, optimizer, group):
    """Every process writes its own stages, under their names; then the first says it is done."""
    rank = 0 if group is None else group.rank()
    state = {name: optimizer.state[weight] for name, weight in pipe.named_parameters()}
    new = folder / f"step-{step}"
    new.mkdir(parents=True, exist_ok=True)
    torch.save({"model": pipe.state_dict(), "optimizer": state}, new / f"rank-{rank}.pt")
    if group is not None:
        dist.barrier(group)  # all files are there
    if rank == 0:
        (folder / "latest.new").write_text(str(step))
        os.replace(folder / "latest.new", folder / "latest")  # an interrupted save changes nothing
        for old in folder.glob("step-*"):
            if old != new:
                shutil.rmtree(old)


def load(folder, pipe, optimizer):
    """Takes this process's part of a checkpoint, and returns the step to go on with."""
    step, model, state = int((folder / "latest").read_text()), {}, {}
    for file in (folder / f"step-{step}").glob("rank-*.pt"):  # as many as there were processes
        saved = torch.load(file, weights_only=True)
        model |= saved["model"]
        state |= saved["optimizer"]
    pipe.load_state_dict(model)
    optimizer.state.update((weight, state[name]) for name, weight in pipe.named_parameters())
    return step


def sample(pipe, text, num_bytes, group, seed):
    """Continues prompts, int64 of shape (num_microbatches, CONTEXT); returns the first as text."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_bytes):
        logits = pipe(text[:, -CONTEXT:])
        byte = torch.zeros(len(text), 1, dtype=torch.long)
        if logits is not None:  # on the rank of the last stage
            byte = torch.multinomial(
                functional.softmax(logits[:, -1] / 0.7, -1), 1, generator=generator
            )
        if group is not None:
            dist.all_reduce(byte, group=group)  # the other ranks add zero
        text = torch.cat([text, byte], dim=1)
    return bytes(text[0].tolist()).decode(errors="replace")


def entropies(text):
    """Nats a byte of the text to one who knows how frequent bytes are, and how frequent pairs."""
    pairs = torch.bincount(text[:-1] * 256 + text[1:], minlength=256 * 256).view(256, 256)
    single, double = (torch.special.entr(n / n.sum()).sum().item() for n in (pairs.sum(1), pairs))
    return single, double - single


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="the text to learn (default: Python's manual)")
    parser.add_argument("--ranks", type=int, default=2, help="threads (torchrun sets its own)")
    parser.add_argument("--schedule", default="1f1b", help="interleaved_1f1b: two stages a rank")
    parser.add_argument("--microbatches", type=int, default=8, help="microbatches in a step")
    parser.add_argument("--batch", type=int, default=16, help="windows of text in a step")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
    parser.add_argument("--validate-every", type=int, default=50, help="steps between validations")
    parser.add_argument("--checkpoint", type=Path, help="folder to write to at each validation")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.add_argument("--stop-at", type=int, help="stop after this step, as if interrupted")
    parser.add_argument("--sample", type=int, default=200, help="bytes to write at the end")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and sample")
    return parser.parse_args()


def main():
    args, group = parse_args(), pipert.init()  # group is None unless torchrun started us
    rank, ranks = (0, args.ranks) if group is None else (group.rank(), group.size())
    torch.set_num_threads(1)  # one for each rank: two ranks on two cores
    say = print if rank == 0 else lambda *_, **__: None

    raw = args.text.read_bytes() if args.text else "\n\n".join(topics.values()).encode()
    text = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()
    train, held_out = text.tensor_split([len(text) * 9 // 10])
    windows = held_out.unfold(0, CONTEXT + 1, 2 * CONTEXT).split(args.batch)[:-1]  # whole batches
    if not windows:
        sys.exit(f"the text is too short: {len(text)} bytes, {25 * args.batch * CONTEXT} needed")

    torch.manual_seed(args.seed)  # every rank builds the same model, and keeps its own stages
    blocks = [Block() for _ in range(LAYERS)]
    model = nn.Sequential(Embedding(), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))
    stages = pipert.split(
        model, num_stages=2 * ranks if args.schedule.startswith("interleaved") else ranks
    )
    pipe = pipert.Pipeline(
        stages,
        schedule=args.schedule,
        num_microbatches=args.microbatches,
        loss_fn=loss_fn,
        num_ranks=ranks,
        group=group,
        broadcast_loss=True,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    first = load(args.checkpoint, pipe, optimizer) if args.resume else 0

    last, seconds = min(args.steps, args.stop_at or args.steps), 0.0
    if first >= last:
        sys.exit(f"nothing to do: {args.checkpoint} has seen {first} of {last} steps")
    for step in range(first, last):
        start = time.perf_counter()
        x, y = training_batch(train, step, args)
        loss = float(pipe.step(x, target=y).loss)
        pipe.clip_grad_norm_(1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - start
        speed = (step + 1 - first) * x.numel() / seconds
        line = f"step {step + 1:4}/{args.steps}  loss {loss:.9g}  {speed:.0f} bytes/s"
        if (step + 1) % args.validate_every == 0 or step + 1 == last:
            report = pipe.report()
            losses = [pipe.evaluate(w[:, :-1], target=w[:, 1:]).loss.item() for w in windows]
            validation = sum(losses) / len(losses)
            say(f"{line}  validation loss {validation:.9g}", flush=True)
            if args.checkpoint:
                save(args.checkpoint, step + 1, pipe, optimizer, group)
        elif sys.stdout.isatty():
            say(line, end="\r", flush=True)

    if last == args.steps:
        prompts = windows[0][: args.microbatches, :-1]
        unigram, bigram = entropies(text)
        say(f"\n{sample(pipe, prompts, args.sample, group, args.seed)}\n")
        say(f"validation loss   {validation:.4f} nats a byte")
        say(f"unigram entropy   {unigram:.4f}\nbigram entropy    {bigram:.4f}")
        say(f"speed             {speed:.0f} bytes/s\n\n{report}")
    pipe.close()
    if group is not None:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
