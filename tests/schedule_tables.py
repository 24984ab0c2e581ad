"""Tables of schedules, drawn as the comments of the generators draw them."""

from pathlib import Path

from pipert import Costs

SOURCES = Path(__file__).parent.parent / "csrc" / "schedule"
EQUAL_TIMES = Costs(forward=1.0, input=0.5, weight=0.5)  # B takes as long as F
EQUAL_HALVES = Costs()  # F, I and W take equally long, B twice that


def drawn(schedule, with_stage, costs=EQUAL_TIMES):
    """One line for each rank, one column for each unit of time, a dot for an idle one.

    A dash where an action goes on.
    """
    width = 3 if with_stage else 2
    return _drawn(schedule, costs, width, lambda a: str(a) if with_stage else _without_stage(a))


def drawn_versions(schedule, costs=EQUAL_TIMES):
    """The same for asynchronous schedules, with the versions of the weights."""
    return _drawn(schedule, costs, 4, _without_stage)


def drawn_v(schedule, costs=EQUAL_HALVES):
    """The same on a V; what belongs to the stage on the way up is in small letters."""

    def label(action):
        text = _without_stage(action)
        return text if action.stage < schedule.num_ranks else text.lower()

    return _drawn(schedule, costs, 2, label)


def _without_stage(action):
    return str(action).lstrip("0123456789")


def _drawn(schedule, costs, width, label):
    timeline = schedule.simulate(costs)
    lines = []
    for rank, spans in enumerate(timeline.ranks):
        cells = ["."] * round(timeline.makespan)
        for span in spans:
            begin, end = round(span.start), round(span.end)
            if begin == end:
                continue  # an update, which takes no time
            cells[begin:end] = [label(span.action)] + ["-"] * (end - begin - 1)
        lines.append(f"rank {rank}: " + " ".join(cell.ljust(width) for cell in cells).rstrip())
    return lines


def in_comment(file_name):
    """The table in the comment at the head of a generator's source."""
    lines = (SOURCES / file_name).read_text().splitlines()
    return [line[2:].strip() for line in lines if line.startswith("//   rank ")]
