"""What each layer of a model takes, time and memory: measured on example inputs, or estimated."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from pipert.balancing.example_values import (
    copies,
    cut_off,
    is_on_meta,
    left_as_it_was,
    state_of,
    to_meta,
)
from pipert.balancing.layer_calls import LayerCall
from pipert.balancing.presumed import Presumed
from pipert.balancing.timing import estimate, measure
from pipert.signatures import takes_keywords


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
    on_meta = any(is_on_meta((call.layer, call.args, call.kwargs)) for call in calls)
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
    profiler = _Profiler(is_on_meta((args, kwargs, [layer for _, layer in layers])))
    profiles = []
    for index, (path, layer) in enumerate(layers):
        taken = takes_keywords(layer, kwargs or {}, is_first=index == 0)
        profile, output = profiler.profile(LayerCall(path, layer, args, taken))
        profiles.append(profile)
        args = (output,)
    return profiles


def profile_call(call: LayerCall) -> tuple[LayerProfile, Any]:
    """As `profile_calls`, of one call; and what it returns, as a leaf of no graph."""
    return _Profiler(is_on_meta((call.layer, call.args, call.kwargs))).profile(call)


def add_up(path: str, profiles: Sequence[LayerProfile]) -> LayerProfile:
    """What layers take that run one after the other, as one of that path."""
    return LayerProfile(
        path,
        forward=sum(profile.forward for profile in profiles),
        input=sum(profile.input for profile in profiles),
        weight=sum(profile.weight for profile in profiles),
        saved_bytes=sum(profile.saved_bytes for profile in profiles),
        output_bytes=profiles[-1].output_bytes if profiles else 0,
        is_estimated=any(profile.is_estimated for profile in profiles),
    )


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
        args, kwargs = (to_meta if self._on_meta else cut_off)((call.args, call.kwargs))
        presumed = Presumed() if self._on_meta else nullcontext()
        try:
            with left_as_it_was(call.layer, (args, kwargs)), torch.enable_grad(), presumed:
                return self._profile(call.path, call.layer, args, kwargs)
        except Exception as error:
            raise ValueError(
                f"layer {call.path} can't be run alone, as it must be to "
                f"{'estimate' if self._on_meta else 'measure'} what it takes: {error}"
            ) from error

    def _profile(
        self, path: str, layer: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[LayerProfile, Any]:
        own = state_of(layer)
        kept = {_key(tensor) for tensor in own} | self._saved_outputs.keys()
        saved: dict[int, torch.UntypedStorage] = {}
        given = _given_to(layer, args, kwargs)
        own_args, own_kwargs = given()
        with saved_tensors_hooks(lambda t: _note_storage(t, saved, kept), lambda t: t):
            output = layer(*own_args, **own_kwargs)
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            if _key(tensor) in saved:
                self._saved_outputs[_key(tensor)] = tensor.untyped_storage()
        clock: Callable[..., tuple[float, float, float]] = estimate if self._on_meta else measure
        forward, input_half, weight_half = clock(
            layer,
            given,
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
        return profile, cut_off(output)


def _given_to(layer: Callable[..., Any], args: Any, kwargs: Any) -> Callable[[], tuple[Any, Any]]:
    """What to call the layer with, each time: copies if it works in place on what it gets.

    Leaves that require a gradient don't allow that, and it would see another input each time.
    """
    tried_args, tried_kwargs = copies((args, kwargs))
    tensors = [t for t in tree_leaves((tried_args, tried_kwargs)) if isinstance(t, Tensor)]
    before = [t._version for t in tensors]
    with torch.no_grad():
        layer(*tried_args, **tried_kwargs)
    if before == [t._version for t in tensors]:
        return lambda: (args, kwargs)
    return lambda: copies((args, kwargs))


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _note_storage(
    tensor: Tensor, saved: dict[int, torch.UntypedStorage], but: Container[int]
) -> Tensor:
    if _key(tensor) not in but:
        saved[_key(tensor)] = tensor.untyped_storage()
    return tensor
