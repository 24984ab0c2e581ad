"""Does a schedule hide a slow link, and as well as its simulation says?

    python benchmarks/slow_link.py

Two ranks as threads of one process, messages between them delayed as by a link of the given
latency and bandwidth (`Pipeline(network=)`), float32 on one core each: 1f1b, which waits for a
round trip in each turn, against eager_1f1b, which has as many microbatches more under way. They
take turns, with and without the link. `simulated` is what `Schedule.simulate` makes of a step's own
stage times (means over its microbatches, from its trace), the bytes that the messages have, and the
link; the ratio to it is taken step by step. `hidden` is the part of what the link adds to 1f1b
that it doesn't add to eager_1f1b.

PyTorch's schedules can't be had on this link: it is emulated inside of pipert's channels.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import statistics
from collections import defaultdict
from typing import Any

import torch
from environment import RESULTS, write_json
from mlp import NUM_RANKS, Row, check_same
from pairs import Contender, Summary, alternate, milliseconds, table
from pipert_contender import PipertPipeline

import pipert

QUESTION = "Does a schedule hide a slow link, and as well as its simulation says?"
SCHEDULES = ("1f1b", "eager_1f1b")
LINKS = {"none": (0.0, 0.0), "2 ms, 1 GB/s": (2e-3, 1e9), "2 ms, 100 MB/s": (2e-3, 1e8)}
ROW = Row(layers=4, width=512, microbatch_size=32, num_microbatches=16, rounds=20)


class Traced:
    """A pipeline that remembers what its steps took, and what simulation makes of them."""

    def __init__(self, schedule: str, link: tuple[float, float]) -> None:
        self.latency, self.bandwidth = link
        network = pipert.Costs(latency=self.latency, bandwidth=self.bandwidth)
        self.contender = PipertPipeline(ROW, schedule, network=network)
        self.measured: list[float] = []  # seconds from the first action to the last
        self.simulated: list[float] = []

    def remember(self) -> None:
        """The last step."""
        events = [e for e in self.contender.pipe.trace().events if e.action is not None]
        seconds = defaultdict(list)
        for event in events:
            seconds[event.action.kind, event.action.stage].append(event.ended - event.started)

        def means(kind: str) -> list[float]:
            return [statistics.mean(seconds[kind, stage]) for stage in range(NUM_RANKS)]

        costs = pipert.Costs(
            forward=means("F"),
            input=means("B"),
            weight=0.0,
            latency=self.latency,
            bandwidth=self.bandwidth,
            bytes=4.0 * ROW.microbatch_size * ROW.width,
        )
        self.measured.append(max(e.ended for e in events) - min(e.issued for e in events))
        self.simulated.append(float(self.contender.pipe.schedule.simulate(costs).makespan))


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row of the answer for each schedule and link."""
    with contextlib.ExitStack() as stack:
        pipelines = {}
        grads = []
        for schedule in SCHEDULES:
            for name, link in LINKS.items():
                pipeline = Traced(schedule, link)
                stack.callback(pipeline.contender.pipe.close)
                pipeline.contender.prepare()
                pipeline.contender.run()
                grads.append(pipeline.contender.gradients())
                pipelines[f"{schedule}, {name}"] = pipeline
        for other in grads[1:]:
            check_same(other, grads[0])
        samples: dict[str, list[float]] = {name: [] for name in pipelines}
        for index in range(rounds):
            order = list(pipelines) if index % 2 == 0 else list(pipelines)[::-1]
            contenders = [
                Contender(n, pipelines[n].contender.run, pipelines[n].contender.prepare)
                for n in order
            ]
            one = alternate(contenders, 1, warmup=2 if index == 0 else 0)
            for name, pipeline in pipelines.items():
                samples[name] += one[name]
                pipeline.remember()
        rows = []
        for name, pipeline in pipelines.items():
            ratios = [m / s for m, s in zip(pipeline.measured, pipeline.simulated, strict=True)]
            schedule, _, link = name.partition(", ")
            rows.append(
                {
                    "schedule": schedule,
                    "link": link,
                    "step_milliseconds": milliseconds(samples)[name],
                    "makespan_milliseconds": round(1e3 * statistics.median(pipeline.measured), 3),
                    "simulated_milliseconds": round(1e3 * statistics.median(pipeline.simulated), 3),
                    "measured_by_simulated": vars(Summary.of(ratios, 3)),
                }
            )
        return rows


def hidden(rows: list[dict[str, Any]], link: str) -> float:
    """The part of what the link adds to 1f1b that eager_1f1b doesn't have."""
    spans = {(row["schedule"], row["link"]): row["makespan_milliseconds"] for row in rows}
    added = {name: spans[name, link] - spans[name, "none"] for name in SCHEDULES}
    return round(1 - added["eager_1f1b"] / added["1f1b"], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rounds", type=int, default=ROW.rounds, help="timed steps of each")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "slow_link.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.rounds)
    answer = {
        "row": str(ROW),
        "rows": rows,
        "hidden": {link: hidden(rows, link) for link in LINKS if link != "none"},
    }
    head = ["schedule", "link", "step ms", "makespan ms", "simulated ms", "measured/simulated"]
    lines = [
        [
            *(row["schedule"], row["link"], row["step_milliseconds"]["median"]),
            *(row["makespan_milliseconds"], row["simulated_milliseconds"]),
            row["measured_by_simulated"]["median"],
        ]
        for row in rows
    ]
    print(table(head, lines))
    print("of what the link adds to 1f1b, eager_1f1b hides", answer["hidden"])
    write_json(QUESTION, answer, args.out)


if __name__ == "__main__":
    main()
