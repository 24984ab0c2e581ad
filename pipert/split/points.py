"""Where a model is to be cut: named in a list, marked on its modules, or written in its forward."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch.distributed.pipelining import SplitPoint

_MARKS = "_pipert_split_points"
_TORCH_WRAPPERS = {"_split_before_forward": "BEGINNING", "_split_after_forward": "END"}


@dataclass(frozen=True)
class Point:
    """A cut before or behind the first call of a module.

    Attributes:
        path: the module's.
        behind: whether the next stage begins behind it, not with it.
        source: what named it, for messages.
    """

    path: str
    behind: bool = False
    source: str = "at"

    def __str__(self) -> str:
        return f"{self.path!r} ({self.source})"


def annotate_split_points(model: nn.Module, spec: Mapping[str, SplitPoint]) -> None:
    """Marks modules at which `pipert.split` is to cut, as torch.distributed.pipelining's does.

    The modules stay as they are but for the mark, which `copy.deepcopy` keeps.

    Args:
        model: the unpartitioned model.
        spec: {path of a module: `SplitPoint.BEGINNING` or `SplitPoint.END`}: whether a stage begins
            with its first call, or ends with it. A module that has a mark gets another one.

    Raises:
        ValueError: a path leads to no module; the message has near ones.
        TypeError: something else than a SplitPoint.
    """
    for path, point in spec.items():
        kind = getattr(point, "name", None)
        if kind not in ("BEGINNING", "END"):
            raise TypeError(
                f"expected SplitPoint.BEGINNING or SplitPoint.END for {path!r}, got {point!r}"
            )
        module = module_at(model, path, "annotate_split_points")
        marks = module.__dict__.setdefault(_MARKS, [])
        if kind not in marks:
            marks.append(kind)


@contextlib.contextmanager
def marked(model: nn.Module, spec: Mapping[str, SplitPoint]) -> Iterator[None]:
    """Marks modules while it lasts; other marks stay."""
    before = [(module, module.__dict__.get(_MARKS)) for module in model.modules()]
    for module, marks in before:
        if marks is not None:
            module.__dict__[_MARKS] = list(marks)
    try:
        annotate_split_points(model, spec)
        yield
    finally:
        for module, marks in before:
            if marks is None:
                module.__dict__.pop(_MARKS, None)
            else:
                module.__dict__[_MARKS] = marks


def pipe_split() -> None:
    """Begins a new stage in the forward of a model that `pipert.split` traces; does nothing else.

    It is torch.distributed.pipelining's operator: scripts may import either.
    """
    from torch.distributed.pipelining import pipe_split as torch_pipe_split

    torch_pipe_split()  # type: ignore[no-untyped-call]


def points_of(model: nn.Module, at: Sequence[str] | None) -> list[Point]:
    """The points that are named in `at`, else those that are marked on the model's modules.

    The marks are those of `annotate_split_points`, pipert's or torch's.

    Raises:
        ValueError: a name leads to no module, or both ways are used.
    """
    marked = [
        Point(path, kind == "END", "annotate_split_points")
        for path, module in model.named_modules()
        for kind in _marks_of(module)
    ]
    if at is None:
        return marked
    if marked:
        raise ValueError(
            f"expected cuts from at or from annotate_split_points, got both: {list(at)} and "
            f"{', '.join(str(point) for point in marked)}"
        )
    for path in at:
        module_at(model, path, "at")
    return [Point(path) for path in at]


def module_at(model: nn.Module, path: str, source: str) -> nn.Module:
    """The module of that path.

    Raises:
        ValueError: there is none; the message has near names.
    """
    try:
        found = model.get_submodule(path) if path else None
    except AttributeError:
        found = None
    if found is None:
        names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
        raise ValueError(
            f"{source} must name modules of {type(model).__name__}: got {path!r}, which is none; "
            + near(path, names)
        )
    return found


def near(name: str, names: Iterable[str]) -> str:
    """The names that `name` may have been meant for, as the end of a message."""
    names = list(names)
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    tail = name.rpartition(".")[2]
    found += [other for other in names if other.rpartition(".")[2] == tail and other not in found]
    if found:
        return f"near names: {', '.join(found[:3])}"
    return f"it has {', '.join([n for n in names if '.' not in n][:8]) or 'no modules'}"


def torch_mark_of(module: nn.Module) -> str | None:
    """The mark that torch's annotate_split_points has left: it wraps the module's forward."""
    wrapper = module.__dict__.get("forward")
    name = getattr(getattr(wrapper, "__func__", None), "__name__", "")
    return _TORCH_WRAPPERS.get(name) if "_orig_forward" in module.__dict__ else None


def _marks_of(module: nn.Module) -> list[str]:
    marks: list[str] = list(module.__dict__.get(_MARKS, []))
    mark = torch_mark_of(module)
    return marks if mark is None else [*marks, mark]
