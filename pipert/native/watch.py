"""Looks, while a callable is traced, for what a graph of operators would lose silently."""

import contextlib
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pipert.native.error import NativeError

_TENSOR: Any = Tensor  # whose properties' accessors are what a function mode sees


_FOREIGN = "uses a tensor that is neither its input nor its module's"


class Watch(TorchFunctionMode):
    """Notes calls that leave no trace in a graph. It doesn't stop them: they may have to be undone.

    Args:
        own: ids of the modules' parameters and buffers.

    Attributes:
        lost: what the callable does that a graph can't; empty: nothing.
    """

    _LOST: ClassVar[dict[Any, str]] = {
        Tensor.register_hook: "registers a hook on a tensor",
        Tensor.register_post_accumulate_grad_hook: "registers a hook on a tensor",
        Tensor.retain_grad: "retains the gradient of a tensor",
        Tensor.requires_grad_: "changes whether a tensor requires a gradient",
        _TENSOR.requires_grad.__set__: "changes whether a tensor requires a gradient",
        _TENSOR.data.__set__: "sets a tensor's data",
        _TENSOR.grad.__get__: "reads a gradient",
        _TENSOR.grad.__set__: "sets a gradient",
        Tensor.backward: "runs a backward of its own",
        torch.autograd.grad: "runs a backward of its own",
        torch.autograd.backward: "runs a backward of its own",
        **dict.fromkeys(
            (
                Tensor.storage_offset,  # a microbatch is a part of its batch
                Tensor.data_ptr,
                Tensor.untyped_storage,
                Tensor.storage,
                Tensor.is_set_to,
                Tensor.is_shared,
                Tensor.is_pinned,
            ),
            "reads where a tensor lies in memory",
        ),
        **dict.fromkeys(
            (
                _TENSOR.is_leaf.__get__,
                _TENSOR.grad_fn.__get__,
                _TENSOR._base.__get__,
                _TENSOR._version.__get__,
                Tensor._is_view,
                Tensor.is_inference,
                torch.is_inference,
            ),
            "reads how a tensor was made",
        ),
    }

    # What makes Python values of a tensor's. Of those that are traced, torch.export knows them.
    _VALUES: ClassVar[set[Any]] = {
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.equal,
        Tensor.allclose,
        Tensor.is_nonzero,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__index__,
        Tensor.__float__,
        Tensor.__complex__,
        Tensor.__contains__,
        Tensor.__array__,
        Tensor.__dlpack__,
        torch.equal,
        torch.allclose,
        torch.is_nonzero,
    }

    def __init__(self, own: Container[int]) -> None:
        super().__init__()
        self.lost: list[str] = []
        self._own = own
        self._switches: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reason := self._LOST.get(func):
            self.lost.append(reason)
        if func is torch._C._set_grad_enabled:
            self.note_switch("grad")
        result = func(*args, **(kwargs or {}))
        real = [leaf for leaf in tree_leaves((args, kwargs)) if _is_real(leaf)]
        if func in self._VALUES and real:
            self.lost.append(_FOREIGN)
        if any(id(leaf) not in self._own for leaf in real) and any(
            isinstance(leaf, Tensor) for leaf in tree_leaves(result)
        ):
            self.lost.append(_FOREIGN)
        return result

    def note_switch(self, switch: str) -> None:
        """Of a mode of the thread."""
        self._switches.add(switch)
        if len(self._switches) > 1:  # torch.export forgets a grad mode inside of an autocast
            self.lost.append("switches both autocast and gradients")

    def note_inference(self, mode: Any) -> None:
        """That it is entered. Torch itself leaves it to make a constant."""
        if mode.mode:
            self.lost.append("switches inference mode")

    def check(self, outputs: Sequence[Tensor]) -> None:
        """After the call.

        Raises:
            NativeError: something would be lost.
        """
        for reason in [*self.lost, *_lost_backwards(outputs)]:
            raise NativeError(f"it {reason}")


def _lost_backwards(outputs: Sequence[Tensor]) -> Iterator[str]:
    """Nodes of the autograd graph that only Python knows: a graph of operators has others there."""
    pending = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        name = type(node).__name__
        # The last is the backward of a torch.library operator, which is part of the operator.
        if isinstance(node, BackwardCFunction) and not name.startswith("GeneratedBackwardFor_"):
            yield f"uses a torch.autograd.Function ({name.removesuffix('Backward')})"
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                pending.append(after)


def _is_real(value: Any) -> bool:
    """Whether it is a tensor that isn't traced."""
    return type(value) in (Tensor, nn.Parameter)


def _append(to: list[str], reason: str, _: Any) -> None:
    to.append(reason)


@contextlib.contextmanager
def watching(own: Container[int]) -> Iterator[Watch]:
    """Also looks, on this thread, for what torch.export looks through."""
    thread = threading.get_ident()
    watch = Watch(own)

    def look_at(owner: Any, name: str, note: Callable[[Any], None]) -> None:
        original = owner.__dict__.get(name)
        if original is None:  # not in this torch
            return

        def noting(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                note(args[0] if args else None)
            return original(*args, **kwargs)

        setattr(owner, name, noting)
        undo.callback(setattr, owner, name, original)

    with contextlib.ExitStack() as undo:
        for owner, name, reason in (
            (
                torch.autograd.graph.saved_tensors_hooks,
                "__enter__",
                "uses hooks on saved tensors, as torch.utils.checkpoint does",
            ),
            (torch.nn.attention, "_sdpa_kernel", "chooses kernels of attention"),
            (torch, "manual_seed", "seeds torch's generator"),
            (torch.random, "manual_seed", "seeds torch's generator"),
            (torch, "set_rng_state", "sets the state of torch's generator"),
            (torch.random, "set_rng_state", "sets the state of torch's generator"),
        ):
            look_at(owner, name, partial(_append, watch.lost, reason))
        look_at(torch.autocast, "__enter__", lambda _: watch.note_switch("autocast"))
        look_at(torch.inference_mode, "__enter__", watch.note_inference)
        with watch:
            yield watch
