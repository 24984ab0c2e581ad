"""PlanUnits: what of a transformers model can be on a stage of its own."""

from torch import nn

from pipert.integrations.transformers.plans import Plan, find_module


class PlanUnits:
    """The units in order: what comes before the layers, each layer, and what comes behind.

    Args:
        model: the whole model.
        base: the path in it of the model without its head; empty: itself.
        plan: how that is built.

    Attributes:
        model, base, plan: as given.
        modules: by unit, what it runs, by path.
        num_layers: how many of the units are layers.
        has_tail: whether there is a unit behind the layers.

    Raises:
        ValueError: a module has parameters and no place.
    """

    def __init__(self, model: nn.Module, base: str, plan: Plan) -> None:
        self.model = model
        self.base = base
        self.plan = plan
        inner = model.get_submodule(base)
        layers = inner.get_submodule(plan.layers)
        heads = [name for name, child in model._modules.items() if child is not None and base]
        first, last = (
            [f"{self._prefix}{path}" for path in paths if find_module(inner, path) is not None]
            for paths in (plan.first, plan.last)
        )
        tail = last + [name for name in heads if name != base]
        units = [
            first,
            *([f"{self._prefix}{plan.layers}.{name}"] for name, _ in layers.named_children()),
            *([tail] if tail else []),
        ]
        self.modules = [{path: model.get_submodule(path) for path in unit} for unit in units]
        self.num_layers = len(layers._modules)
        self.has_tail = bool(tail)
        self._refuse_others(inner)
        self._refuse_hooks()

    @property
    def _prefix(self) -> str:
        return f"{self.base}." if self.base else ""

    def layers_between(self, begin: int, end: int) -> tuple[int, int]:
        """Of the units from `begin` to `end`: where the layers begin and end."""
        return max(begin - 1, 0), min(end - 1, self.num_layers)

    def paths_between(self, begin: int, end: int) -> list[str]:
        """What these units run."""
        return [path for unit in self.modules[begin:end] for path in unit]

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
            is_whole = module is self.model and self.base  # runs on the last stage alone
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
        return [(path, self.model.get_submodule(path)) for path in paths]
