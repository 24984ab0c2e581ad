"""The zero-bubble paper's profiles and the bubble rates that it found for them."""

import csv
from pathlib import Path

from pipert import Costs

TABLE = Path(__file__).parent / "data" / "zero_bubble_table.csv"


def rows():
    with TABLE.open() as file:
        return list(csv.DictReader(file))


def sizes(row):
    return int(row["p"]), int(row["m"])


def times(row):
    """F, I, W and the latency, in ms."""
    return [float(row[column]) for column in ("F_ms", "I_ms", "W_ms", "c_ms")]


def name(row):
    return f"{row['model']}-{row['m']}"


def idle(schedule, row):
    """The longest span of a rank beyond its work, in ms."""
    forward, input_half, weight_half, latency = times(row)
    costs = Costs(forward=forward, input=input_half, weight=weight_half, latency=latency)
    work = schedule.num_microbatches * (forward + input_half + weight_half)
    return max(schedule.simulate(costs).spans) - work


def bubble_rate(schedule, row):
    work = schedule.num_microbatches * sum(times(row)[:3])
    span = work + idle(schedule, row)
    return 1.0 - work / span
