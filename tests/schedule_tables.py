"""Tables of schedules, drawn as the comments of the generators draw them."""

from pathlib import Path

from pipert import Costs

SOURCES = Path(__file__).parent.parent / "csrc" / "schedule"
EQUAL_TIMES = Costs(forward=1.0, input=0.5, weight=0.5)  # B takes as long as F


def drawn(schedule, with_stage):
    """One line for each rank, one column for each unit of time, a dot for an idle one."""
    timeline = schedule.simulate(EQUAL_TIMES)
    lines = []
    for rank, spans in enumerate(timeline.ranks):
        cells = ["."] * round(timeline.makespan)
        for span in spans:
            text = str(span.action)
            cells[round(span.start)] = text if with_stage else text.lstrip("0123456789")
        width = 3 if with_stage else 2
        lines.append(f"rank {rank}: " + " ".join(cell.ljust(width) for cell in cells).rstrip())
    return lines


def in_comment(file_name):
    """The table in the comment at the head of a generator's source."""
    lines = (SOURCES / file_name).read_text().splitlines()
    return [line[2:].strip() for line in lines if line.startswith("//   rank ")]
