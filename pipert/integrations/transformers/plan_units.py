"""PlanUnits: what of a transformers model can be on a stage of its own, and where it is cut."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipert import _C
from pipert.integrations.transformers.plans import Plan


class PlanUnits:
    """The units in order: what comes before the layers, each layer, and what comes behind.

    Args:
        model: the whole model.
        base: the path in it of the model without its head; empty: itself.
        plan: how that is built.

    Attributes:
        base, plan: as given.

    Raises:
        ValueError: a module has parameters and no place.
    """

    def __init__(self, model: nn.Module, base: str, plan: Plan) -> None:
        self._model = model
        self.base = base
        self.plan = plan
        inner = model.get_submodule(base)
        layers = inner.get_submodule(plan.layers)
        heads = [name for name, child in model._modules.items() if child is not None and base]
        self._units = [
            [f"{self._prefix}{path}" for path in plan.first if _has(inner, path)],
            *([f"{self._prefix}{plan.layers}.{name}"] for name, _ in layers.named_children()),
            [f"{self._prefix}{path}" for path in plan.last if _has(inner, path)]
            + [name for name in heads if name != base],
        ]
        self._num_layers = len(layers._modules)
        self._refuse_others(inner)
        self._refuse_hooks()

    @property
    def _prefix(self) -> str:
        return f"{self.base}." if self.base else ""

    def begins(
        self,
        num_stages: int | None,
        at: Sequence[str] | None,
        balance: str | Sequence[int] | Callable[[str, nn.Module], float],
    ) -> list[int]:
        """The first unit of each stage."""
        if at is not None:
            if isinstance(at, str) or not isinstance(at, Sequence):
                raise TypeError(
                    f'at must be a list of paths such as ["model.layers.4"], got {at!r}'
                )
            if num_stages is not None and num_stages != len(at) + 1:
                raise ValueError(
                    f"at={list(at)} makes {len(at) + 1} stages, got num_stages={num_stages}"
                )
            return self._begins_at(at)
        if num_stages is None:
            raise ValueError("expected num_stages or at, got neither")
        if isinstance(num_stages, bool) or not isinstance(num_stages, int):
            raise TypeError(f"num_stages must be an integer, got {num_stages!r}")
        if not 1 <= num_stages <= self._num_layers:
            raise ValueError(
                f"num_stages must be from 1 to {self._num_layers} (the model's layers), got "
                f"{num_stages}"
            )
        sizes = self._sizes(num_stages, balance)
        return [sum(sizes[:i]) for i in range(num_stages)]

    def layers_of(self, begins: Sequence[int], stage: int) -> tuple[int, int]:
        """Where its layers begin and end."""
        end = begins[stage + 1] if stage + 1 < len(begins) else len(self._units)
        return max(begins[stage] - 1, 0), min(end - 1, self._num_layers)

    def paths_of(self, begins: Sequence[int], stage: int) -> list[str]:
        """What it runs."""
        end = begins[stage + 1] if stage + 1 < len(begins) else len(self._units)
        return [path for unit in self._units[begins[stage] : end] for path in unit]

    def return_tuples(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the first layer returns a tuple, in a forward of the whole model."""
        seen: list[bool] = []
        layer = self._model.get_submodule(self._units[1][0])
        hook = layer.register_forward_hook(
            lambda module, args, output: seen.append(isinstance(output, tuple))
        )
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._model(*args, **kwargs)
        finally:
            hook.remove()
        return any(seen)

    def _begins_at(self, at: Sequence[str]) -> list[int]:
        first_paths = {unit[0]: i for i, unit in enumerate(self._units) if unit and i > 0}
        begins = [0]
        for path in at:
            if path not in first_paths:
                near = difflib.get_close_matches(path, first_paths, n=3)
                raise ValueError(
                    f"at must name layers, or what comes behind the last: expected one of "
                    f"{', '.join(near or first_paths)}; got {path!r}"
                )
            if first_paths[path] <= begins[-1]:
                raise ValueError(f"at must name them in order, got {path!r} in {list(at)}")
            begins.append(first_paths[path])
        return begins

    def _sizes(
        self,
        num_stages: int,
        balance: str | Sequence[int] | Callable[[str, nn.Module], float],
    ) -> list[int]:
        """The number of units of each stage."""
        n = self._num_layers
        if balance == "parameters":
            return self._balanced(num_stages, _num_parameters)
        if callable(balance):
            return self._balanced(num_stages, balance)
        if balance == "uniform":
            layers = [len(part) for part in torch.arange(n).tensor_split(num_stages)]
        elif isinstance(balance, Sequence) and not isinstance(balance, str):
            layers = list(balance)
        else:
            raise ValueError(
                "balance must be 'parameters', 'uniform', the layers of each stage, or a function, "
                f"got {balance!r}"
            )
        inside = layers[1:-1]
        if len(layers) != num_stages or sum(layers) != n or min(layers) < 0 or 0 in inside:
            raise ValueError(
                f"balance must be {num_stages} numbers with the sum {n} (the model's layers), "
                f"positive but for the first and the last, got {layers}"
            )
        layers[0] += 1
        layers[-1] += 1
        return layers

    def _balanced(self, num_stages: int, cost: Callable[[str, nn.Module], float]) -> list[int]:
        costs = [
            sum(cost(path, self._model.get_submodule(path)) for path in unit)
            for unit in self._units
        ]
        placement = _C.Placement.loop(num_stages, num_stages)
        if not self._units[-1]:
            sizes = _C.balanced_cuts(costs[:-1], placement).cuts
            return [*sizes[:-1], sizes[-1] + 1]
        return _C.balanced_cuts(costs, placement).cuts

    def _refuse_others(self, inner: nn.Module) -> None:
        """What isn't in the plan is on every stage, so it can't have parameters."""
        for path, module in self._opened():
            own = [
                *module._parameters,
                *module._buffers.keys() - module._non_persistent_buffers_set,
            ]
            if own:
                raise ValueError(
                    f"every parameter and buffer must belong to a module with a place in the plan; "
                    f"{', '.join(own)} belong to {path or type(module).__name__} itself"
                )
        for name, child in inner.named_children():
            if name not in self.plan.children and any(True for _ in child.parameters()):
                raise ValueError(
                    f"{self._prefix}{name} has parameters and no place in the plan; cut the model "
                    "by tracing"
                )

    def _refuse_hooks(self) -> None:
        """What is cut inside runs on every stage: its hooks would see stand-ins."""
        for path, module in self._opened():
            is_whole = module is self._model and self.base  # runs on the last stage alone
            hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            if any(hooks) and not is_whole:
                raise ValueError(
                    f"{path or type(module).__name__} has hooks, and is cut between its layers: "
                    "they would run on every stage"
                )

    def _opened(self) -> list[tuple[str, nn.Module]]:
        """The modules that are cut inside, by path."""
        names = f"{self._prefix}{self.plan.layers}".split(".")
        paths = [".".join(names[:i]) for i in range(len(names) + 1)]
        return [(path, self._model.get_submodule(path)) for path in paths]


def _num_parameters(path: str, module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters())


def _has(module: nn.Module, path: str) -> bool:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found is not None
