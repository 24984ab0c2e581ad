"""Says which module refused which tensor, when a stage's forward fails."""

from types import FrameType, TracebackType

import torch
from torch import nn

_CALL = ("_call_impl", "_wrapped_call_impl")


def diagnose(error: BaseException, stage: int) -> str:
    """Returns a clause for the error message, or "" if the traceback shows no module.

    Names the innermost module of the failed call, what it got, and, for the layers whose input
    shape is fixed by their weights, what it expects.
    """
    frames = _module_frames(error.__traceback__)
    if not frames:
        return _diagnose_function(error.__traceback__)
    top: nn.Module = frames[0].f_locals["self"]
    inner = frames[-1]
    module: nn.Module = inner.f_locals["self"]
    path = next((name for name, child in top.named_modules() if child is module), "")
    got = _arguments(inner)
    is_loss = isinstance(top, nn.modules.loss._Loss)
    text = "\n  in the loss function" if is_loss else f"\n  in stage {stage}"
    if path:
        text += f", module '{path}'"
    text += f" ({_one_line(module)}), which got {_describe(got)}"
    if expected := _expected(module):
        text += f" and expected {expected}"
    return text


def _diagnose_function(trace: TracebackType | None) -> str:
    """For a stage or a loss that is a plain function."""
    if trace is None:
        return ""
    name = trace.tb_frame.f_code.co_name
    return f"\n  in {name}, which got {_describe(_arguments(trace.tb_frame))}"


def _module_frames(trace: TracebackType | None) -> list[FrameType]:
    """The frames that run a module, outermost first."""
    frames = []
    while trace is not None:
        if isinstance(trace.tb_frame.f_locals.get("self"), nn.Module):
            frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def _arguments(frame: FrameType) -> dict[str, object]:
    """What the module was called with, by name (by position for torch's own call frames)."""
    code = frame.f_code
    values = frame.f_locals
    if code.co_name in _CALL:
        positional = {str(i): value for i, value in enumerate(values.get("args", ()))}
        return {**positional, **values.get("kwargs", {})}
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {name: values[name] for name in names if name != "self" and name in values}


def _describe(arguments: dict[str, object]) -> str:
    return ", ".join(f"{name}: {_type_of(value)}" for name, value in arguments.items()) or "nothing"


def _type_of(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _expected(module: nn.Module) -> str:
    """The input that a module's weights ask for, where its class says."""
    dtype = next((str(p.dtype).removeprefix("torch.") for p in module.parameters(False)), "")
    if isinstance(module, nn.Linear):
        return f"{dtype}[..., {module.in_features}]"
    if isinstance(module, nn.LayerNorm):
        return f"{dtype}[..., {', '.join(map(str, module.normalized_shape))}]"
    if isinstance(module, nn.Embedding):
        return f"int64 or int32, below {module.num_embeddings}"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return f"{dtype}[N, {module.in_channels}, ...]"
    return ""


def _one_line(module: nn.Module) -> str:
    text = repr(module)
    return text if "\n" not in text else type(module).__name__
