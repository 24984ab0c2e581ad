"""dw_builder: gradients of weights that a stage's own code computes, in its weight half."""

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from pipert import _C

DwBuilder = Callable[[], Callable[..., None]]

_handles: "WeakKeyDictionary[nn.Module, RemovableHandle]" = WeakKeyDictionary()


def put_off_weights(module: nn.Module, dw_builder: DwBuilder | None) -> None:
    """Has `dw_builder` called behind each backward of the module that a pipeline runs.

    What it returns is called in the weight half; behind a backward in one piece, at once. The last
    one counts that was given for the module.

    Args:
        module: of a stage.
        dw_builder: returns what the backward before has left to do; None: nothing is.
    """
    if (handle := _handles.pop(module, None)) is not None:
        handle.remove()
    if dw_builder is not None:
        _handles[module] = module.register_forward_hook(partial(_put_behind, dw_builder))


# Note [A weight half of the stage's own]
#
# The engine runs a Python function's node whole in the input half, and hands on what it gives to a
# leaf in the weight half (docs/backward.md). So a node behind the stage's output, where each
# backward begins, has the builder called at the end of the half that it runs in, and gives a
# gradient to a leaf of its own, whose hook does the same with what the builder has returned. Where
# both are in one run (a backward in one piece, the first stage's weight half) they are called in
# that order.
class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dw_builder: DwBuilder, rest: list[Any], leaf: Tensor, *outputs: Any
    ) -> Any:
        ctx.dw_builder, ctx.rest = dw_builder, rest
        ctx.set_materialize_grads(False)  # what gets no gradient gets none here either
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        _at_end_of_run(lambda: ctx.rest.append(ctx.dw_builder()))
        return None, None, torch.zeros(()), *gradients


def _put_behind(dw_builder: DwBuilder, module: nn.Module, args: Any, output: Any) -> Any:
    if _C.current_microbatch() is None or not torch.is_grad_enabled():
        return None
    values, structure = tree_flatten(output)
    at = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad]
    if not at:
        return None
    rest: list[Callable[..., None]] = []
    leaf = torch.zeros((), requires_grad=True)
    leaf.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: _at_end_of_run(lambda: rest.pop()())
    )
    begin: Callable[..., tuple[Tensor, ...]] = _Begin.apply
    for i, value in zip(at, begin(dw_builder, rest, leaf, *(values[i] for i in at)), strict=True):
        values[i] = value
    return tree_unflatten(values, structure)


def _at_end_of_run(call: Callable[[], Any]) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(call)
