"""How long does it take to split a model of 48 layers by tracing, and what is it spent on?

    python benchmarks/traced_split.py

A GPT of GPT-2 XL's sizes (48 layers, width 1600, 25 heads, 1.6 billion parameters, one embedding
for input and output) on the meta device, of plain torch modules, is cut into 8 stages, each round
in a process of its own: a process's first trace imports what torch.export needs. With --plain it is
traced through its layers too, as torch.export does by itself, to see what leaving them out saves.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from environment import RESULTS, write_json
from torch import Tensor, nn
from torch.nn import functional

LAYERS, WIDTH, HEADS, WORDS, CONTEXT = 48, 1600, 25, 50257, 1024
QUESTION = "How long does it take to split GPT-2 XL's 48 layers into 8 stages by tracing?"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, HEADS, -1)).transpose(1, 3)
        attended = functional.scaled_dot_product_attention(*heads.unbind(2), attn_mask=mask)
        return self.dropout(self.out(attended.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = (
            nn.LayerNorm(WIDTH),
            Attention(),
            nn.LayerNorm(WIDTH),
        )
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        up = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.dropout(self.down(up))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        length = ids.shape[1]
        places = torch.arange(length, device=ids.device)
        mask = places[:, None] >= places
        x = self.words(ids) + self.places(places)
        for block in self.blocks:
            x = block(x, mask)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


def measure(plain: bool) -> dict[str, Any]:
    """Splits once in this process; seconds and what came out."""
    import pipert

    with torch.device("meta"):
        model = GPT()
        ids = torch.zeros(2, 128, dtype=torch.long)
    start = time.perf_counter()
    if plain:
        program = torch.export.export(model, (ids, ids.clone()), strict=False)
        return {"seconds": time.perf_counter() - start, "nodes": len(program.graph.nodes)}
    stages = pipert.split(model, 8, example_args=(ids, ids), by="trace")
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "stages": len(stages),
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": [len(spec.layers) for spec in stages.specs or ()],
        "skip_edges": len(stages.skip_edges),
        "tied": [list(tied.uses) for tied in stages.tied],
    }


def in_a_process(plain: bool) -> dict[str, Any]:
    """The same in a new process."""
    command = [sys.executable, __file__, "--one", *["--plain"] * plain]
    answer: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
    return answer


def main() -> None:
    """Runs all, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="torch.export through all layers too")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "traced_split.json")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.plain)))
        return
    rows: dict[str, Any] = {}
    for name, plain in (("pipert.split", False), *[("torch.export alone", True)] * args.plain):
        runs = [in_a_process(plain) for _ in range(args.rounds)]
        seconds = sorted(run.pop("seconds") for run in runs)
        rows[name] = {
            **runs[0],
            "seconds": {
                "median": round(statistics.median(seconds), 2),
                "least": round(seconds[0], 2),
                "most": round(seconds[-1], 2),
            },
        }
        print(f"{name:20} {rows[name]['seconds']}", flush=True)
    write_json(QUESTION, {"rounds": args.rounds, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
