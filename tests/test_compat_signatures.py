"""pipert.compat.torch_pipelining has torch's names, parameters and defaults.

data/torch_pipelining.txt lists them as of PyTorch 2.13. Newer ones of torch's fail these tests with
what is new; `python tests/test_compat_signatures.py` writes the list anew.
"""

import importlib
import inspect
from pathlib import Path

import pytest
import torch

THEIRS, OURS = "torch.distributed.pipelining", "pipert.compat.torch_pipelining"
TABLE = Path(__file__).parent / "data" / "torch_pipelining.txt"
IS_OLDER = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)

RUNNING = ["step", "eval", "_step_microbatches"]
FILES = ["_load_csv", "_dump_csv"]
NAMES = {
    "schedules": {
        "PipelineScheduleSingle": RUNNING,
        "PipelineScheduleMulti": [*RUNNING, *FILES],
        "_PipelineScheduleRuntime": [*RUNNING, *FILES, "register_custom_function"],
        "_ScheduleForwardOnly": RUNNING,
        "Schedule1F1B": RUNNING,
        "ScheduleGPipe": RUNNING,
        "ScheduleInterleaved1F1B": [*RUNNING, *FILES],
        "ScheduleLoopedBFS": [*RUNNING, *FILES],
        "ScheduleInterleavedZeroBubble": [*RUNNING, *FILES],
        "ScheduleZBVZeroBubble": [*RUNNING, *FILES],
        "ScheduleDualPipeV": [*RUNNING, *FILES],
        "get_schedule_class": [],
    },
    "stage": {"PipelineStage": ["scale_grads"], "build_stage": []},
    "microbatch": {
        "TensorChunkSpec": ["from_tuple", "from_dict"],
        "split_args_kwargs_into_chunks": [],
        "merge_chunks": [],
    },
    "_backward": {"stage_backward": [], "stage_backward_input": [], "stage_backward_weight": []},
    "_IR": {
        "Pipe": ["from_tracing", "get_stage_module", "build_stage", "info", "print_readable"],
        "pipeline": [],
        "annotate_split_points": [],
        "pipe_split": [],
    },
}


def signatures(package: str) -> dict[str, list[str]]:
    """By name, its parameters, each as "name" or "name=default"."""
    found = {}
    for module, names in NAMES.items():
        where = importlib.import_module(f"{package}.{module}")
        for name, methods in names.items():
            thing = getattr(where, name)
            found[f"{module}.{name}"] = _parameters(thing)
            for method in methods:
                found[f"{module}.{name}.{method}"] = _parameters(getattr(thing, method))
    return found


def _parameters(thing) -> list[str]:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [
        stars.get(p.kind, "") + p.name + ("" if p.default is p.empty else f"={p.default!r}")
        for p in inspect.signature(thing).parameters.values()
    ]


def table() -> dict[str, list[str]]:
    rows = (line.partition("(") for line in TABLE.read_text().splitlines())
    return {name: rest[:-1].split(", ") if rest != ")" else [] for name, _, rest in rows}


def is_within(fewer: list[str], more: list[str]) -> bool:
    """Whether `fewer` are in `more` in the same order."""
    rest = iter(more)
    return all(parameter in rest for parameter in fewer)


@pytest.mark.parametrize("name", table())
def test_ours_takes_what_the_table_says(name):
    assert is_within(table()[name], signatures(OURS)[name])


@pytest.mark.parametrize("name", table())
def test_the_table_has_what_the_installed_torch_takes(name):
    theirs, listed = signatures(THEIRS)[name], table()[name]
    assert is_within(theirs, listed), "torch takes more, or other defaults"
    assert theirs == listed or IS_OLDER


def test_the_public_names_of_each_module_are_torchs():
    for module in ("", ".schedules", ".stage", ".microbatch"):
        theirs = importlib.import_module(f"{THEIRS}{module}").__all__
        ours = importlib.import_module(f"{OURS}{module}")
        missing = [name for name in theirs if not hasattr(ours, name)]
        assert missing == [], f"{OURS}{module} lacks them"


if __name__ == "__main__":
    rows = [f"{name}({', '.join(listed)})" for name, listed in signatures(THEIRS).items()]
    TABLE.write_text("\n".join(rows) + "\n")
