"""LeafCalls: what a traced model calls without the trace looking into it."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from pipert.split.leaf_call import LeafCall, Slot, Tree, refuse_hidden
from pipert.split.leaf_purity import run_watched
from pipert.split.own_gradients import call_autograd_function, own_gradients_kept
from pipert.split.pipe_split_watch import modules_on_the_stack, watched_pipe_split
from pipert.split.points import torch_mark_of

_library: Any = torch.library.Library("pipert", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("leaf(int call, Tensor[] tensors, SymInt[] sizes) -> Tensor[]")
_library.define("split_point(int point) -> ()")

LEAF = torch.ops.pipert.leaf.default
SPLIT_POINT = torch.ops.pipert.split_point.default
for _operator in (LEAF, SPLIT_POINT):
    torch.fx.node.has_side_effect(_operator)


@dataclass
class LeafCalls:
    """Records the calls of one trace, by the number that the operator is called with.

    While `recording`, calls of the leaves become calls of the operator `pipert::leaf`, whose fake
    implementation runs the leaf on what the trace runs on. One trace at a time.

    Attributes:
        calls: the record.
        splits_inside: modules that called `pipe_split` somewhere inside of a leaf, where the trace
            doesn't see it: they are to be opened.
    """

    calls: list[LeafCall] = field(default_factory=list)
    splits_inside: list[nn.Module] = field(default_factory=list)
    _originals: list[Callable[..., Any]] = field(default_factory=list)
    _depth: int = 0
    _has_own_gradients: bool = False

    @contextlib.contextmanager
    def recording(
        self,
        leaves: Mapping[str, nn.Module],
        functions: Iterable[Callable[..., Any]],
        points: Iterable[tuple[nn.Module, bool]],
    ) -> Iterator[None]:
        """Takes over the calls of leaves.

        Args:
            leaves: modules by path.
            functions: wherever a loaded Python module has them under a name.
            points: modules that stand behind or (True) before a cut; the operator
                `pipert::split_point` is called there, with the number of the point.
        """
        global _recording
        if _recording is not None:
            raise RuntimeError("pipert.split traces one model at a time")
        _recording = self
        try:
            with contextlib.ExitStack() as undo:
                for path, module in leaves.items():
                    undo.enter_context(self._leaf_module(path, module))
                for number, (module, behind) in enumerate(points):
                    undo.enter_context(self._split_point(module, number, behind))
                for function in functions:
                    undo.enter_context(self._leaf_function(function))
                undo.enter_context(watched_pipe_split(self._note_split))
                undo.enter_context(own_gradients_kept(self._note_gradients, self._record_call))
                yield
        finally:
            _recording = None

    def run(self, number: int, tensors: list[Tensor], sizes: list[Any]) -> list[Tensor]:
        """Runs a leaf on fakes, for the operator: its results are new tensors."""
        call = self.calls[number]
        leaves = [
            (sizes if leaf.is_size else tensors)[leaf.index] if isinstance(leaf, Slot) else leaf
            for leaf in call.inputs.leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, call.inputs.spec)
        self._depth += 1
        self._has_own_gradients = call.target is call_autograd_function
        try:
            with _fresh_sizes_ignored(tensors):
                result = run_watched(call, self._originals[number], args, kwargs, tensors)
        finally:
            self._depth -= 1
        if self._has_own_gradients:  # for what it need not have read
            call.reads, call.is_pure = None, False
        results, spec = pytree.tree_flatten(result)
        made: dict[int, int] = {}  # by the tensor's identity: its place
        new: list[Tensor] = []
        for leaf in results:
            if isinstance(leaf, Tensor) and id(leaf) not in made:
                made[id(leaf)] = len(new)
                is_input = any(leaf is tensor for tensor in tensors)
                new.append(leaf.clone() if is_input else leaf)
        call.outputs = Tree(
            spec, [Slot(made[id(x)]) if isinstance(x, Tensor) else x for x in results]
        )
        refuse_hidden(call, call.outputs, "returns")
        return new

    def _record(
        self, path: str, target: Any, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        flat, spec = pytree.tree_flatten((args, kwargs))
        tensors: list[Tensor] = []
        sizes: list[Any] = []
        leaves: list[Any] = []
        for leaf in flat:
            if isinstance(leaf, Tensor):
                leaves.append(Slot(len(tensors)))
                tensors.append(leaf)
            elif isinstance(leaf, torch.SymInt):
                leaves.append(Slot(len(sizes), is_size=True))
                sizes.append(leaf)
            else:
                leaves.append(leaf)
        call = LeafCall(path, target, Tree(spec, leaves))
        refuse_hidden(call, call.inputs, "is called with")
        number = len(self.calls)
        self.calls.append(call)
        self._originals.append(original)
        results = torch.ops.pipert.leaf(number, tensors, sizes)
        assert call.outputs is not None
        return pytree.tree_unflatten(
            [results[x.index] if isinstance(x, Slot) else x for x in call.outputs.leaves],
            call.outputs.spec,
        )

    def _note_gradients(self) -> bool:
        """Whether autograd functions, and hooks of tensors, lie in a leaf now."""
        self._has_own_gradients = self._has_own_gradients or self._depth > 0
        return self._depth > 0

    def _record_call(self, name: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return self._record(name, call, call, args, kwargs)

    @contextlib.contextmanager
    def _leaf_module(self, path: str, module: nn.Module) -> Iterator[None]:
        original: Callable[..., Any] = module._call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth:  # of another leaf, which is run as a whole
                return original(*args, **kwargs)
            return self._record(path, module, original, args, kwargs)

        with _own_call(module, call):
            yield

    @contextlib.contextmanager
    def _split_point(self, module: nn.Module, number: int, behind: bool) -> Iterator[None]:
        original: Callable[..., Any] = module._call_impl
        was_called = False

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal was_called
            is_point = not was_called and not self._depth
            was_called = was_called or is_point
            if is_point and not behind:
                torch.ops.pipert.split_point(number)
            result = original(*args, **kwargs)
            if is_point and behind:
                torch.ops.pipert.split_point(number)
            return result

        with _own_call(module, call):
            yield

    @contextlib.contextmanager
    def _leaf_function(self, function: Callable[..., Any]) -> Iterator[None]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return function(*args, **kwargs)
            return self._record(function.__name__, function, function, args, kwargs)

        places = [
            (namespace, name)
            for namespace in map(vars, list(filter(None, sys.modules.values())))
            for name in [name for name, value in list(namespace.items()) if value is function]
        ]
        for namespace, name in places:
            namespace[name] = call
        try:
            yield
        finally:
            for namespace, name in places:
                namespace[name] = function

    def _note_split(self) -> bool:
        """Whether it is to be in the trace."""
        modules = modules_on_the_stack()
        if modules and torch_mark_of(modules[0]) is not None:  # which is a point already
            return False
        if self._depth:
            self.splits_inside += modules
        return not self._depth


_recording: LeafCalls | None = None


def _run(call: int, tensors: list[Tensor], sizes: list[Any]) -> list[Tensor]:
    if _recording is None:
        raise RuntimeError("pipert::leaf runs while a model is traced, and not otherwise")
    return _recording.run(call, tensors, sizes)


def _nothing(point: int) -> None:
    pass


_library.impl("leaf", _run, "CompositeExplicitAutograd")
_library.impl("split_point", _nothing, "CompositeExplicitAutograd")
torch.library.register_fake("pipert::leaf", _run, lib=_library)
torch.library.register_fake("pipert::split_point", _nothing, lib=_library)


@contextlib.contextmanager
def _own_call(module: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """Lets `call` stand for what calling the module runs, its hooks and compiled code included."""
    own: dict[str, Any] = module.__dict__
    names = ("_call_impl", "_compiled_call_impl")
    before: dict[str, Any] = {name: own[name] for name in names if name in own}
    own.update(_call_impl=call, _compiled_call_impl=None)
    try:
        yield
    finally:
        del own["_call_impl"], own["_compiled_call_impl"]
        own.update(before)


@contextlib.contextmanager
def _fresh_sizes_ignored(tensors: list[Tensor]) -> Iterator[None]:
    """Sizes that depend on data, inside of a leaf, are nothing to the trace."""
    modes = [getattr(tensor, "fake_mode", None) for tensor in tensors]
    shape_env = next((mode.shape_env for mode in modes if mode is not None), None)
    if shape_env is None:
        yield
        return
    with shape_env.ignore_fresh_unbacked_symbols():
        yield
