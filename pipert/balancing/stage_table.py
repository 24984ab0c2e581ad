"""The table that `print(stages)` shows: what each stage of a split model is and takes."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from pipert.stages import Stages

_MOST_LAYERS = 44  # characters of that column


def stage_table(stages: "Stages") -> str:
    """One line for each stage, for each skip edge, and for each weight that stages share.

    Bytes are of parameters and buffers. Time is that of forward and backward of one microbatch,
    "kept" what stays of it between the two, "out" what goes to the next stage.
    """
    return "\n".join([*_aligned(_rows(stages)), *_notes(stages)])


def _rows(stages: "Stages") -> list[list[str]]:
    """The titles, and the cells of each stage."""
    costs = stages.costs
    columns = ["stage", "layers", "parameters", "bytes"]
    if costs is not None:
        columns += ["time (estimated)" if getattr(costs, "is_estimated", False) else "time", "kept"]
    out = _bytes_out(stages)
    if out is not None:
        columns.append("out")
    rows = [columns]
    for index in range(len(stages)):
        row = [str(index), _shortened(abbreviate(stages.layers[index])), *_sizes(stages, index)]
        if costs is not None:
            seconds = sum(_of(c, index) for c in (costs.forward, costs.input, costs.weight))
            row += [_seconds(seconds), _bytes(_of(costs.activation_bytes or [0.0], index))]
        if out is not None:
            row.append(_bytes(out[index]))
        rows.append(row)
    return rows


def _notes(stages: "Stages") -> Iterator[str]:
    """A line for each skip edge, and for each weight that stages share."""
    sizes = {value.name: value.bytes for value in stages.values}
    for edge in stages.skip_edges:
        size = [sizes[name] for name in edge.values]
        total = "" if None in size else f" ({_bytes(sum(s for s in size if s is not None))})"
        yield f"skip {edge.maker} -> {edge.reader}: {', '.join(edge.values)}{total}"
    for tied in stages.tied:
        uses = ", ".join(f"{name} (stage {stage})" for stage, name in tied.uses)
        yield f"tied: {uses}"


def abbreviate(paths: Iterable[str]) -> str:
    """The paths, those that count up as one: "embed, layers.0-3"."""
    shown: list[str] = []
    last: tuple[str, int, int] | None = None
    for path in paths:
        match = re.fullmatch(r"(.*?)(\d+)", path)
        stem, number = (match[1], int(match[2])) if match else (path, -1)
        if match and (not stem or stem.endswith(".")) and last and last[::2] == (stem, number - 1):
            last = (stem, last[1], number)
            shown[-1] = f"{stem}{last[1]}-{number}"
        else:
            last = (stem, number, number) if match else None
            shown.append(path)
    return ", ".join(shown)


def leaf_children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The children of nested Sequentials, by path."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if type(child) is nn.Sequential and len(child) > 0:
            yield from leaf_children(child, f"{path}.")
        else:
            yield path, child


def layers_of(stages: "Stages", index: int) -> list[str]:
    """Paths of a stage's layers, as far as it tells them, or else what its names begin with."""
    if stages.specs is not None and stages.specs[index].layers:
        return list(stages.specs[index].layers)
    stage = stages[index]
    module = _module_of(stage)
    for made in (stage, module):
        if (paths := getattr(made, "pipert_paths", None)) is not None:
            return list(paths)
    if module is not None:
        return [path for path, _ in leaf_children(module)]
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in stages.names[index]))


def _module_of(stage: Any) -> nn.Module | None:
    """The stage, or what it will be when it is built, if that is known."""
    module = stage if isinstance(stage, nn.Module) else getattr(stage, "skeleton", None)
    return module if isinstance(module, nn.Module) else None


def _sizes(stages: "Stages", index: int) -> list[str]:
    """How many parameters it has, and the bytes of these and its buffers."""
    module = _module_of(stages[index])
    if module is None:
        return ["?", "?"]
    parameters = list(module.parameters())
    state: list[Tensor] = [*parameters, *module.buffers()]
    total = sum(t.numel() * t.element_size() for t in state)
    return [f"{sum(p.numel() for p in parameters):,}", _bytes(total)]


def _bytes_out(stages: "Stages") -> list[float | None] | None:
    """By stage, of all that goes to the next; None on the last, or where it isn't known."""
    last = len(stages) - 1
    if stages.specs is not None:
        out: list[float | None] = []
        for index in range(last):
            sizes = [v.bytes for v in stages.values if v.maker == index]
            out.append(None if None in sizes else float(sum(s for s in sizes if s is not None)))
        return [*out, None] if any(size is not None for size in out) else None
    if stages.costs is None:
        return None
    return [_of(stages.costs.bytes, index) if index < last else None for index in range(last + 1)]


def _of(values: Sequence[float], index: int) -> float:
    return values[0] if len(values) == 1 else values[index]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = (0, 1)
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _shortened(layers: str) -> str:
    """Without the middle, where there are too many for a column."""
    if len(layers) <= _MOST_LAYERS:
        return layers
    names = layers.split(", ")
    head: list[str] = []
    room = _MOST_LAYERS - len(names[-1]) - len(", ..., ")
    ends = itertools.accumulate(len(name) + 2 for name in names[:-1])
    for end, name in zip(ends, names, strict=False):
        if end > room:
            break
        head.append(name)
    return ", ".join([*head, "...", names[-1]])


def _bytes(size: float | None) -> str:
    if size is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError  # not reached


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
