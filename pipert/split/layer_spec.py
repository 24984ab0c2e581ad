"""Layers that are built where they run: LayerSpec, TiedLayerSpec, and the stages made of them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pipert.stages import Tied


class LayerSpec:
    """A layer that is built when the rank that has its stage is.

    As DeepSpeed has them: a list of these goes to `pipert.split`.

    Args:
        cls: a class of modules, or any function that returns one.
        *args: its positional arguments.
        **kwargs: its keyword arguments.
    """

    def __init__(self, cls: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> None:
        if not callable(cls):
            raise TypeError(f"a layer is built by a class or a function, got {cls!r}")
        self.cls = cls
        self.args = args
        self.kwargs = kwargs

    def __call__(self) -> nn.Module:
        """Builds it."""
        return self.cls(*self.args, **self.kwargs)

    def __repr__(self) -> str:
        given = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.kwargs.items())]
        return f"{type(self).__name__}({', '.join([self.cls.__name__, *given])})"


class TiedLayerSpec(LayerSpec):
    """A layer that shares weights with all others of its key.

    Those on one stage are one module. On other stages it is built once more, and its
    `tied_weight_attr` is tied: one parameter, with the sum of their gradients.

    Args:
        key: what its layers have in common; any string.
        cls: as in LayerSpec.
        *args: as in LayerSpec.
        forward_fn: `forward_fn(module, input)` runs in place of `module(input)`.
        tied_weight_attr: the parameter that is tied, or several: paths in the module.
        **kwargs: as in LayerSpec.
    """

    def __init__(
        self,
        key: str,
        cls: Callable[..., nn.Module],
        *args: Any,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        tied_weight_attr: str | Sequence[str] = "weight",
        **kwargs: Any,
    ) -> None:
        super().__init__(cls, *args, **kwargs)
        self.key = key
        self.forward_fn = forward_fn
        self.tied_weight_attr = (
            (tied_weight_attr,) if isinstance(tied_weight_attr, str) else tuple(tied_weight_attr)
        )


class BuiltStage:
    """Builds one stage of a list of layers: a function without arguments, as stages may be.

    Args:
        layers: by name; each a module, a LayerSpec or a function without arguments.

    Attributes:
        pipert_paths: the names of the layers.
        skeleton: the stage on the meta device, to count and to name what it will have.
        is_built: whether all its layers are modules; then the skeleton is the stage.
    """

    def __init__(self, layers: Sequence[tuple[str, Any]]) -> None:
        self._layers = list(layers)
        self.pipert_paths = [name for name, _ in layers]
        self.is_built = all(isinstance(layer, nn.Module) for _, layer in layers)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            self.skeleton = self()

    def __call__(self) -> nn.Sequential:
        """Builds it."""
        tied: dict[str, nn.Module] = {}
        built = OrderedDict((name, _build(layer, name, tied)) for name, layer in self._layers)
        return nn.Sequential(built)


class _OtherUse(nn.Module):
    """A layer's weights under their own names, with another forward."""

    def __init__(self, layer: nn.Module, forward_fn: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self._parameters = layer._parameters
        self._buffers = layer._buffers
        self._modules = layer._modules
        self._non_persistent_buffers_set = layer._non_persistent_buffers_set
        self._used = (layer, forward_fn)  # in a tuple, so that it isn't a child

    def forward(self, value: Any) -> Any:
        layer, forward_fn = self._used
        return forward_fn(layer, value)


def ties_of(stages: Sequence[BuiltStage]) -> list[Tied]:
    """The weights that specs of one key share beyond one stage."""
    uses: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for index, stage in enumerate(stages):
        seen: set[str] = set()
        for name, spec in stage._layers:
            if not isinstance(spec, TiedLayerSpec) or spec.key in seen:
                continue
            seen.add(spec.key)
            own = dict(stage.skeleton.get_submodule(name).named_parameters())
            for weight in spec.tied_weight_attr:
                if weight not in own:
                    raise ValueError(
                        f"{spec!r} of key {spec.key!r} has no parameter {weight!r}: expected "
                        f"one of {', '.join(own) or 'none'}"
                    )
                uses.setdefault((spec.key, weight), []).append((index, f"{name}.{weight}"))
    return [Tied(tuple(tied)) for tied in uses.values() if len(tied) > 1]


def _build(layer: Any, name: str, tied: dict[str, nn.Module]) -> nn.Module:
    """A module, what a function without arguments builds, or another use of what is tied to it."""
    if isinstance(layer, TiedLayerSpec):
        if layer.key not in tied:
            tied[layer.key] = _called(layer, name)
        module = tied[layer.key]
        return module if layer.forward_fn is None else _OtherUse(module, layer.forward_fn)
    if not isinstance(layer, nn.Module) and callable(layer):
        return _called(layer, name)
    return _checked(layer, name)


def _called(build: Callable[[], Any], name: str) -> nn.Module:
    try:
        built = build()
    except (TypeError, ValueError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(
            f"model[{name}] must be a module, or a function without arguments that builds one; "
            f"{build!r} raises: {error}"
        ) from error
    return _checked(built, name)


def _checked(built: Any, name: str) -> nn.Module:
    if not isinstance(built, nn.Module):
        raise TypeError(
            f"model[{name}] must be a module, or a function without arguments that builds one; "
            f"got {type(built).__name__}"
        )
    return built
