"""What is wrong where a model can't be traced, with the line of the user's that it comes from."""

from __future__ import annotations

import contextlib
import linecache
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pipert.split.example import Argument, is_on_meta
from pipert.split.trial_run import undisturbed

_TORCH, _OURS, _STANDARD = (
    os.path.dirname(os.path.abspath(path)) + os.sep
    for path in (torch.__file__, __file__, os.__file__)
)
_NO_LINE = "(the line could not be found)"
_DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "DataDependentOutputException")


def cannot_trace(model: nn.Module, error: Exception) -> ValueError:
    """What to raise, from `error`, where the export failed."""
    name = type(model).__name__
    cause, line = _innermost(error)
    if any(
        type(link).__name__ in _DATA_DEPENDENT or "data-dependent" in str(link)
        for link in _chain(error)
    ):
        problem = "what it does there depends on the values of tensors, which a trace hasn't"
    elif isinstance(cause, ValueError) and _is_ours(cause):
        return cause
    else:
        problem = f"{type(cause).__name__}: {_first_line(cause)}"
    return ValueError(
        f"{name} can't be traced: {problem}\n  {line}\nCut it by structure, which needs no trace "
        '(layers="path.of.its.layers"), or at modules that leave this line inside of one'
    )


def check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Runs a model that can't be traced as it is: perhaps its example is to blame.

    Raises:
        ValueError: it fails.
    """
    if is_on_meta(model):
        return
    try:
        with undisturbed(model), torch.enable_grad():
            model(*args, **kwargs)
    except Exception as error:
        frame = _users(traceback.extract_tb(error.__traceback__))
        where = "" if frame is None else f"\n  {_text(frame)}"
        raise ValueError(
            f"{type(model).__name__} fails on the example, traced or not: {type(error).__name__}: "
            f"{_first_line(error)}{where}"
        ) from error


def fixed_batch(
    model: nn.Module, argument: Argument, rows: int, export: Callable[[], Any]
) -> ValueError:
    """What to raise where a trace allows `rows` rows of an argument and no others.

    Args:
        model: the unpartitioned one.
        argument: whose dimension 0 became a constant.
        rows: that constant.
        export: traces once more, to find the line.
    """
    if rows <= 1:
        return ValueError(
            "example_args must have at least 2 rows, since a trace takes 0 and 1 for constants; "
            f"got {rows} in {argument}"
        )
    lines: list[str] = []
    with _specializations(rows, lines), contextlib.suppress(Exception):
        export()
    return ValueError(
        f"{type(model).__name__} fixes the batch dimension at {rows}, so that it takes no "
        f"microbatch of another size: dimension 0 of {argument} became a constant\n"
        f"  {lines[0] if lines else _NO_LINE}\n"
        f"fixed_batch=True allows it, for microbatches of {rows} rows"
    )


@contextlib.contextmanager
def _specializations(rows: int, lines: list[str]) -> Iterator[None]:
    """Notes the user's lines at which a size becomes the constant `rows`."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    original = getattr(ShapeEnv, "_set_replacement", None)
    if original is None:  # of a torch that has it under another name
        yield
        return

    def noted(self: Any, symbol: Any, to: Any, *rest: Any) -> None:
        if to == rows:
            lines.append(_text(_users(traceback.extract_stack())))
        original(self, symbol, to, *rest)

    ShapeEnv._set_replacement = noted  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        ShapeEnv._set_replacement = original  # type: ignore[method-assign]


def _chain(error: BaseException) -> list[BaseException]:
    """The error and its causes, the outermost first."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.append(link)
        link = link.__cause__ or link.__context__
    return found


def _innermost(error: Exception) -> tuple[BaseException, str]:
    """The deepest cause that passes a line of the user's, and that line."""
    for link in reversed(_chain(error)):
        frame = _users(traceback.extract_tb(link.__traceback__))
        if frame is not None:
            return link, _text(frame)
    return error, _NO_LINE


def _users(frames: traceback.StackSummary) -> traceback.FrameSummary | None:
    """The innermost frame outside of torch, pipert and the standard library."""
    return next((frame for frame in reversed(frames) if _is_users(frame.filename)), None)


def _is_users(file: str) -> bool:
    if file.startswith(_STANDARD):
        return "site-packages" in file and not file.startswith(_TORCH)
    return not file.startswith((_TORCH, _OURS, "<"))


def _text(frame: traceback.FrameSummary | None) -> str:
    if frame is None:
        return _NO_LINE
    text = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{frame.filename}:{frame.lineno}: {text}"


def _is_ours(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_OURS)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
