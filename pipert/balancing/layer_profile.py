"""What each layer of a model takes, time and memory: measured on example inputs, or estimated."""

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pipert.balancing.roofline import Roofline
from pipert.signatures import takes_keywords

_WARM_UP = 2
_LEAST_RUNS, _MOST_RUNS = 5, 50
_ENOUGH_S = 0.01  # of one layer: short ones run more often


class LayerCall(NamedTuple):
    """One call of a layer in one forward of the model.

    Attributes:
        path: the layer's, in the unpartitioned model.
        layer: a module or a function.
        args: positional arguments. Tensors that require a gradient get one.
        kwargs: keyword arguments.
    """

    path: str
    layer: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


@dataclass(frozen=True)
class LayerProfile:
    """What one layer takes for one microbatch.

    Attributes:
        path: the layer's, in the unpartitioned model.
        forward: seconds.
        input: seconds of the input half of backward.
        weight: seconds of the weight half.
        saved_bytes: what stays from forward to backward, without parameters and without what a
            layer before it has saved.
        output_bytes: what it hands on.
        is_estimated: whether the times are computed from operations and bytes, not measured.
    """

    path: str
    forward: float
    input: float
    weight: float
    saved_bytes: int
    output_bytes: int
    is_estimated: bool = False


def profile_calls(calls: Iterable[LayerCall]) -> list[LayerProfile]:
    """Profiles each call alone.

    Random numbers, buffers and gradients are as before. If any layer or argument is on the meta
    device all times are estimated; see Roofline.

    Args:
        calls: in the order of the model's forward. Where the arguments of one are the outputs of
            another, what both save counts once.

    Raises:
        ValueError: a layer can't be run alone; the message says which.
    """
    calls = list(calls)
    on_meta = any(_is_on_meta((call.layer, call.args, call.kwargs)) for call in calls)
    profiler = _Profiler(on_meta)
    return [profiler.profile(call)[0] for call in calls]


def profile_in_turn(
    layers: Iterable[tuple[str, Callable[..., Any]]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> list[LayerProfile]:
    """Profiles layers of which each takes what the one before returned; else as `profile_calls`.

    Args:
        layers: by path.
        args: of the first one.
        kwargs: each layer gets those that it takes.
    """
    layers = list(layers)
    profiler = _Profiler(_is_on_meta((args, kwargs, [layer for _, layer in layers])))
    profiles = []
    for index, (path, layer) in enumerate(layers):
        taken = takes_keywords(layer, kwargs or {}, is_first=index == 0)
        profile, output = profiler.profile(LayerCall(path, layer, args, taken))
        profiles.append(profile)
        args = (output,)
    return profiles


def record_calls(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> list[LayerCall]:
    """Runs the model once, on the meta device if it is there, and notes how it calls its layers.

    Args:
        model: the unpartitioned model.
        layers: of the model, by path.
        args: of one forward.
        kwargs: of one forward.
    """
    calls: list[LayerCall] = []
    if _is_on_meta(model):
        args, kwargs = to_meta((args, dict(kwargs or {})))

    def note(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            args, kwargs = _cut_off((args, kwargs))
            calls.append(LayerCall(path, layer, args, kwargs))

        return hook

    handles = [
        layer.register_forward_pre_hook(note(path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    try:
        with _left_as_it_was(model, args), torch.enable_grad():
            model(*args, **(kwargs or {}))
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _Profiler:
    """Profiles layers one after another.

    Args:
        on_meta: whether nothing is run, and times are estimated.
    """

    def __init__(self, on_meta: bool) -> None:
        self._on_meta = on_meta
        # Storages that layers so far have saved and handed on: who saves one too keeps it for
        # nothing. Kept alive, so that no other one gets its number.
        self._saved_outputs: dict[int, torch.UntypedStorage] = {}

    def profile(self, call: LayerCall) -> tuple[LayerProfile, Any]:
        """What a call takes, and what it returns, cut off from its graph but as differentiable."""
        args, kwargs = (to_meta if self._on_meta else _cut_off)((call.args, call.kwargs))
        try:
            with _left_as_it_was(call.layer, args), torch.enable_grad():
                return self._profile(call.path, call.layer, args, kwargs)
        except Exception as error:
            raise ValueError(
                f"layer {call.path} can't be run alone, as it must be to "
                f"{'estimate' if self._on_meta else 'measure'} what it takes: {error}"
            ) from error

    def _profile(
        self, path: str, layer: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[LayerProfile, Any]:
        own = _state_of(layer)
        kept = {_key(tensor) for tensor in own} | self._saved_outputs.keys()
        saved: dict[int, torch.UntypedStorage] = {}
        with saved_tensors_hooks(lambda t: _note_storage(t, saved, kept), lambda t: t):
            output = layer(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            if _key(tensor) in saved:
                self._saved_outputs[_key(tensor)] = tensor.untyped_storage()
        clock: Callable[..., tuple[float, float, float]] = _estimate if self._on_meta else _measure
        forward, input_half, weight_half = clock(
            lambda: layer(*args, **kwargs),
            [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad],
            [t for t in own if t.requires_grad],
        )
        profile = LayerProfile(
            path,
            forward,
            input_half,
            weight_half,
            saved_bytes=sum(storage.nbytes() for storage in saved.values()),
            output_bytes=sum(t.numel() * t.element_size() for t in outputs),
            is_estimated=self._on_meta,
        )
        return profile, _cut_off(output)


def _measure(
    run: Callable[[], Any], inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[float, float, float]:
    """Seconds of forward, and of the two halves of backward."""
    devices = {t.device for t in (*inputs, *weights) if t.is_cuda}
    runs: list[tuple[float, float, float]] = []
    spent = 0.0
    while len(runs) < _WARM_UP + _LEAST_RUNS or (
        len(runs) < _WARM_UP + _MOST_RUNS and spent < _ENOUGH_S
    ):
        marks = [_now(devices)]
        for part in _parts_of(run, inputs, weights):
            part()
            marks.append(_now(devices))
        runs.append((marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]))
        spent += marks[3] - marks[0] if len(runs) > _WARM_UP else 0.0
    forward, input_half, whole = (median(times) for times in zip(*runs[_WARM_UP:], strict=True))
    return _halves(forward, input_half, whole, bool(inputs), bool(weights))


def _estimate(
    run: Callable[[], Any], inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[float, float, float]:
    """As `_measure`, of a device whose speed Roofline tells."""
    times = []
    for part in _parts_of(run, inputs, weights):
        with Roofline() as roofline:
            part()
        times.append(roofline.seconds)
    return _halves(times[0], times[1], times[2], bool(inputs), bool(weights))


def _halves(
    forward: float, input_half: float, whole: float, has_inputs: bool, has_weights: bool
) -> tuple[float, float, float]:
    """The weight half is what the whole backward takes beyond its input half."""
    if not has_inputs:
        return forward, 0.0, whole
    if not has_weights:
        return forward, whole, 0.0
    return forward, min(input_half, whole), max(0.0, whole - input_half)


def _parts_of(
    run: Callable[[], Any], inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> Iterator[Callable[[], None]]:
    """Forward, the gradients of inputs, those of inputs and weights. To be called in order."""
    roots: list[Tensor] = []
    seeds: list[Tensor] = []

    def forward() -> None:
        outputs = tree_leaves(run())
        roots.extend(t for t in outputs if isinstance(t, Tensor) and t.requires_grad)

    def backward(targets: Sequence[Tensor], keep: bool) -> Callable[[], None]:
        def part() -> None:
            if roots and targets:
                torch.autograd.grad(roots, targets, seeds, retain_graph=keep, allow_unused=True)

        return part

    yield forward
    seeds = [torch.ones_like(root) for root in roots]
    yield backward(inputs, keep=True)
    yield backward([*inputs, *weights], keep=False)


def _now(devices: Iterable[torch.device]) -> float:
    for device in devices:
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _note_storage(
    tensor: Tensor, saved: dict[int, torch.UntypedStorage], but: Container[int]
) -> Tensor:
    if _key(tensor) not in but:
        saved[_key(tensor)] = tensor.untyped_storage()
    return tensor


def _state_of(layer: Callable[..., Any]) -> list[Tensor]:
    """Its parameters and buffers."""
    return [*layer.parameters(), *layer.buffers()] if isinstance(layer, nn.Module) else []


def _is_on_meta(given: Any) -> bool:
    return any(
        tensor.is_meta
        for leaf in tree_leaves(given)
        for tensor in ([leaf] if isinstance(leaf, Tensor) else _state_of(leaf))
    )


def _cut_off(given: Any) -> Any:
    """The same values as leaves of no graph, that require a gradient where they did."""
    leaves, structure = tree_flatten(given)
    cut = [
        leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    ]
    return tree_unflatten(cut, structure)


def to_meta(given: Any) -> Any:
    """The same structure, its tensors on the meta device."""
    leaves, structure = tree_flatten(given)
    moved = [
        leaf
        if not isinstance(leaf, Tensor)
        else leaf.detach().requires_grad_(leaf.requires_grad)
        if leaf.is_meta
        else torch.empty_like(leaf, device="meta", requires_grad=leaf.requires_grad)
        for leaf in leaves
    ]
    return tree_unflatten(moved, structure)


@contextmanager
def _left_as_it_was(layer: Callable[..., Any], args: Any) -> Iterator[None]:
    """Puts random generators and the layer's buffers back."""
    state = _state_of(layer)
    tensors = [*state, *(t for t in tree_leaves(args) if isinstance(t, Tensor))]
    devices = sorted({t.device.index or 0 for t in tensors if t.is_cuda})
    buffers = [t for t in state if not isinstance(t, nn.Parameter) and not t.is_meta]
    before = [(buffer, buffer.clone()) for buffer in buffers]
    fork: AbstractContextManager[None] = torch.random.fork_rng(devices)
    with fork:
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, values in before:
                    buffer.copy_(values)
