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

import torch
import torch.distributed as dist
from gpt import LAYERS, gpt, loss_fn, sample
from text import entropies, read_text, training_batch

import pipert

LEARNING_RATE, WARMUP = 3e-3, 30


def main():
    args = parse_args(num_ranks=int(os.environ.get("WORLD_SIZE", 2)))  # torchrun's, or two threads
    group = pipert.init()  # None unless torchrun started us
    text, train, windows = args.text
    say = print if group is None or group.rank() == 0 else lambda *_, **__: None

    torch.set_num_threads(1)  # one for each rank: two ranks on two cores
    torch.manual_seed(0)  # every rank builds the same model, and keeps its own stages
    pipe = pipert.Pipeline(
        pipert.split(gpt(), num_stages=args.schedule.num_stages),
        schedule=args.schedule,
        num_microbatches=args.microbatches,
        loss_fn=loss_fn,
        group=group,
        broadcast_loss=True,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    first = load(args.checkpoint, pipe, optimizer, args) if args.resume else 0
    last, seconds = min(args.steps, args.stop_at or args.steps), 0.0
    if first >= last:
        sys.exit(f"nothing to do: {args.checkpoint} has seen {first} of {last} steps")

    for step in range(first, last):
        start = time.perf_counter()
        x, y = training_batch(train, step, args.batch)
        loss = pipe.step(x, target=y).loss.item()
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
                save(args.checkpoint, step + 1, pipe, optimizer, group, args)
        elif sys.stdout.isatty():
            say(line, end="\r", flush=True)

    if last == args.steps:
        unigram, bigram = entropies(text)
        say(f"\n{sample(pipe, windows[0][: args.microbatches, :-1], args.sample, group)}\n")
        say(f"validation loss   {validation:.4f} nats a byte")
        say(f"unigram entropy   {unigram:.4f}\nbigram entropy    {bigram:.4f}")
        say(f"speed             {speed:.0f} bytes/s\n\n{report}")
    pipe.close()
    if group is not None:
        dist.destroy_process_group()


def learning_rate(step, num_steps):
    done = max(0.0, (step - WARMUP) / max(1, num_steps - WARMUP))
    return LEARNING_RATE * min((step + 1) / WARMUP, 0.05 + 0.475 * (1 + math.cos(math.pi * done)))


def save(folder, step, pipe, optimizer, group, args):
    """Every process writes its own stages, under their names; then the first says it is done."""
    rank = 0 if group is None else group.rank()
    state = {name: optimizer.state[weight] for name, weight in pipe.named_parameters()}
    new = folder / f"step-{step}"
    new.mkdir(parents=True, exist_ok=True)
    part = {"model": pipe.state_dict(), "optimizer": state, "options": what_is_trained(args)}
    torch.save(part, new / f"rank-{rank}.pt")
    if group is not None:
        dist.barrier(group)  # all files are there
    if rank == 0:
        (folder / "latest.new").write_text(str(step))
        os.replace(folder / "latest.new", folder / "latest")  # an interrupted save changes nothing
        for old in folder.glob("step-*"):
            if old != new:
                shutil.rmtree(old)


def load(folder, pipe, optimizer, args):
    """Takes this process's part of a checkpoint, and returns the step to go on with."""
    step, model, state = int((folder / "latest").read_text()), {}, {}
    for file in (folder / f"step-{step}").glob("rank-*.pt"):  # as many as there were processes
        saved = torch.load(file, weights_only=True)
        if saved["options"] != what_is_trained(args):
            sys.exit(f"--resume: {folder} is of a run with {saved['options']}")
        model |= saved["model"]
        state |= saved["optimizer"]
    pipe.load_state_dict(model)
    optimizer.state.update((weight, state[name]) for name, weight in pipe.named_parameters())
    return step


def what_is_trained(args):
    """The options that must stay the same if a resumed run is to go on as if it never had ended."""
    text, _, _ = args.text
    options = {name: getattr(args, name) for name in ("steps", "batch", "microbatches")}
    return options | {"text_bytes": len(text)}


def parse_args(num_ranks):
    """The options; `text` and `schedule` are not names any more, but what they name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, fail = parser.add_argument, parser.error
    add("--text", type=Path, help="the text to learn (default: Python's manual)")
    add("--schedule", default="1f1b", help="interleaved_1f1b: two stages a rank")
    add("--microbatches", type=positive, default=8, help="microbatches in a step")
    add("--batch", type=positive, default=16, help="windows of text in a step")
    add("--steps", type=positive, default=600, help="optimizer steps")
    add("--validate-every", type=positive, default=50, help="steps between validations")
    add("--checkpoint", type=Path, help="folder to write to at each validation")
    add("--resume", action="store_true", help="go on from --checkpoint")
    add("--stop-at", type=positive, help="stop after this step, as if interrupted")
    add("--sample", type=int, default=200, help="bytes to write at the end")
    args = parser.parse_args()
    try:
        args.text = read_text(args.text, args.batch)
        args.schedule = pipert.Schedule.build(
            args.schedule,
            num_ranks=num_ranks,
            num_microbatches=args.microbatches,
            num_stages=num_ranks * (2 if args.schedule.startswith("interleaved") else 1),
        )
    except (OSError, ValueError) as error:
        fail(str(error))
    if args.microbatches > args.batch:
        fail(f"--microbatches must be at most --batch, {args.batch}, got {args.microbatches}")
    if args.schedule.num_stages > LAYERS + 3:
        fail(f"the model has {LAYERS + 3} layers, too few for {args.schedule.num_stages} stages")
    if args.checkpoint and args.checkpoint.exists() and not args.checkpoint.is_dir():
        fail(f"--checkpoint must be a folder, got the file {args.checkpoint}")
    if args.resume and not args.checkpoint:
        fail("--resume needs --checkpoint, the folder to go on from")
    if args.resume and not (args.checkpoint / "latest").is_file():
        fail(f"--resume: there is no checkpoint in {args.checkpoint}")
    return args


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return int(text)


if __name__ == "__main__":
    main()
