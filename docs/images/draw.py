"""Draws docs/images/schedule.svg: a schedule, and below it what really ran.

python docs/images/draw.py
"""

from pathlib import Path

import torch
from torch import nn

import pipert

RANKS, STAGES, MICROBATCHES, ROWS, WIDTH = 2, 4, 8, 48, 768
STEPS = 60


def milliseconds(timeline: pipert.Timeline) -> pipert.Timeline:
    """The same timeline with its axis in milliseconds."""
    return pipert.Timeline.from_spans(
        [
            [(span.action, span.start * 1e3, span.end * 1e3) for span in rank]
            for rank in timeline.ranks
        ]
    )


def main() -> None:
    """Runs some steps and draws the fastest one, the one that other programs disturbed least."""
    torch.set_num_threads(RANKS)  # one for each rank
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(4 * STAGES)])
    pipe = pipert.Pipeline(
        pipert.split(model, num_stages=STAGES),
        schedule="interleaved_1f1b",
        num_ranks=RANKS,
        num_microbatches=MICROBATCHES,
        loss_fn=nn.functional.mse_loss,
    )
    x = torch.randn(MICROBATCHES * ROWS, WIDTH)
    best = None
    for _ in range(STEPS):
        pipe.step(x, target=x)
        report, measured = pipe.report(), pipe.trace().timeline()
        if best is None or measured.makespan < best[1].makespan:
            best = report, measured
    assert best is not None
    report, measured = best
    scheduled = pipe.schedule.simulate(report.costs)
    svg = pipert.render_svg(
        [
            (f"scheduled: {pipe.schedule.name}, simulated, ms", milliseconds(scheduled)),
            ("measured: the trace of a step, ms", milliseconds(measured)),
        ]
    )
    Path(__file__).with_name("schedule.svg").write_text(svg)
    print(report)
    pipe.close()


if __name__ == "__main__":
    main()
