"""Does a zero-bubble schedule pay, and as much as its simulation says?

    python benchmarks/zero_bubble.py

Two ranks as threads of one process, four microbatches, float32 on one core each: zb_h1 against
1f1b over the same stages, in turns. `predicted` is what `Schedule.simulate` makes of the stage
times that the traces of these very steps show (medians over all rounds, transfers free); the gain
is the part of the 1f1b step that zb_h1 saves.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
from collections import defaultdict
from typing import Any

import torch
from environment import RESULTS, write_json
from mlp import NUM_RANKS, Row, check_same
from pairs import Contender, alternate, milliseconds, table, times_faster
from pipert_contender import PipertPipeline

import pipert

QUESTION = "Does a zero-bubble schedule pay, and as much as its simulation says?"
SCHEDULES = ("1f1b", "zb_h1")
ROWS = {
    "5 ms": Row(layers=4, width=768, microbatch_size=32, num_microbatches=4),
    "20 ms": Row(layers=4, width=1024, microbatch_size=96, num_microbatches=4, rounds=20),
}


class Traced:
    """A pipeline that remembers what its stages took, step by step."""

    def __init__(self, row: Row, schedule: str) -> None:
        self.contender = PipertPipeline(row, schedule)
        self.seconds: dict[tuple[str, int], list[float]] = defaultdict(list)

    def prepare(self) -> None:
        self.contender.prepare()

    def run(self) -> None:
        self.contender.run()

    def remember(self) -> None:
        """Of the last step."""
        for event in self.contender.pipe.trace().events:
            if event.action is not None:
                key = event.action.kind, event.action.stage
                self.seconds[key].append(event.ended - event.started)

    def predicted(self) -> float:
        """The simulated step, in seconds, from the medians of what was remembered."""

        def medians(*kinds: str) -> list[float]:
            found = [
                [s for kind in kinds for s in self.seconds.get((kind, stage), [])]
                for stage in range(NUM_RANKS)
            ]
            return [statistics.median(values) if values else 0.0 for values in found]

        costs = pipert.Costs(forward=medians("F"), input=medians("B", "I"), weight=medians("W"))
        return float(self.contender.pipe.schedule.simulate(costs).makespan)


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Returns one row of the answer."""
    pipelines = {name: Traced(row, name) for name in SCHEDULES}
    grads = {}
    for name, pipeline in pipelines.items():
        pipeline.prepare()
        pipeline.run()
        grads[name] = pipeline.contender.gradients()
    check_same(grads["zb_h1"], grads["1f1b"])

    samples: dict[str, list[float]] = {name: [] for name in SCHEDULES}
    for index in range(rounds):  # one round at a time, so that each step's trace is seen
        order = SCHEDULES if index % 2 == 0 else SCHEDULES[::-1]
        contenders = [Contender(n, pipelines[n].run, pipelines[n].prepare) for n in order]
        one = alternate(contenders, 1, warmup=3 if index == 0 else 0)
        for name, pipeline in pipelines.items():
            samples[name] += one[name]
            pipeline.remember()
    predicted = {name: pipeline.predicted() for name, pipeline in pipelines.items()}
    measured = {name: statistics.median(seconds) for name, seconds in samples.items()}
    gains = {
        "measured": 1 - measured["zb_h1"] / measured["1f1b"],
        "predicted": 1 - predicted["zb_h1"] / predicted["1f1b"],
    }
    return {
        "row": str(row),
        "milliseconds": milliseconds(samples),
        "predicted_milliseconds": {name: round(1e3 * s, 3) for name, s in predicted.items()},
        "predicted_by_measured": {
            name: round(predicted[name] / measured[name], 3) for name in SCHEDULES
        },
        "stage_milliseconds": {
            name: {
                f"{kind}{stage}": round(1e3 * statistics.median(seconds), 3)
                for (kind, stage), seconds in sorted(pipeline.seconds.items())
            }
            for name, pipeline in pipelines.items()
        },
        "times_faster_than_1f1b": times_faster(samples, "zb_h1", "1f1b"),
        "gain": {name: round(gain, 4) for name, gain in gains.items()},
        "share_of_predicted_gain": round(gains["measured"] / gains["predicted"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, help="timed steps of each schedule (default: by row)")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "zero_bubble.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(ROWS[name], args.rounds or ROWS[name].rounds) for name in args.rows]
    head = ["row", "1f1b ms", "zb_h1 ms", "predicted", "predicted", "gain %", "predicted", "share"]
    lines = []
    for row in rows:
        ms = {name: value["median"] for name, value in row["milliseconds"].items()}
        said = row["predicted_milliseconds"]
        lines.append(
            [row["row"], *(ms[name] for name in SCHEDULES), *(said[name] for name in SCHEDULES)]
            + [100 * gain for gain in row["gain"].values()]
            + [row["share_of_predicted_gain"]]
        )
    print(table(head, lines))
    write_json(QUESTION, {"rows": rows}, args.out)


if __name__ == "__main__":
    main()
