"""LayerList: a model around one list of layers, with what its forward does before and after it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LayerList:
    """A ModuleList, and what the model's forward does before it, at each entry, and after it.

    The functions are copied from the model's forward, with `model` for `self`. A stage runs them on
    a copy of the model that has the submodules and parameters of this stage alone: those that
    `before` uses are the first stage's, those that `after` uses the last one's. What both use they
    share. Parameters beyond those below are keyword arguments of the batch, by name.

    Args:
        path: of the ModuleList in the model.
        before: `before(model, *args)` returns what the first layer takes; None: its one argument.
        each: `each(layer, value)` returns what the next layer takes; None: `layer(value)`.
        after: `after(model, value)` returns what the model does; None: the value.
    """

    path: str
    before: Callable[..., Any] | None = None
    each: Callable[..., Any] | None = None
    after: Callable[..., Any] | None = None


class ListedModel:
    """A model, taken apart as a LayerList says. Its pieces are `before`, the layers, and `after`.

    Args:
        model: the unpartitioned model.
        around: how it runs.
        container: the ModuleList that `around` names.
        args: of one forward.
        kwargs: of one forward.

    Attributes:
        pieces: for each the paths of what it uses: modules, and parameters of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        around: LayerList,
        container: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._model = model
        self._path = around.path
        self._before = _Step("before", around.before, 1)
        self._each = _Step("each", around.each or _call, 2)
        self._after = _Step("after", around.after, 2)
        watches = [_Watch(model, around.path), _Watch(model, around.path)]
        value = self._begin(watches[0].model, args, kwargs)
        for layer in container.children():
            value = self._each(layer, value, kwargs=kwargs)
        self._end(watches[1].model, value, kwargs)
        self.pieces: list[tuple[str, ...]] = [
            (f"{around.path}.{name}",) for name, _ in container.named_children()
        ]
        if around.before is not None:
            self.pieces.insert(0, tuple(watches[0].used))
        if around.after is not None:
            self.pieces.append(tuple(watches[1].used))

    def part(self, begin: int, end: int) -> nn.Module:
        """A copy of the model with what some pieces use alone, and a forward that runs these.

        Args:
            begin: the first of the pieces.
            end: behind the last one.
        """
        is_first = begin == 0
        is_last = end == len(self.pieces)
        keep = [path for piece in self.pieces[begin:end] for path in piece]
        part = _with_only(self._model, "", keep)
        has_layers = any(path.startswith(f"{self._path}.") for path in keep)

        def forward(model: nn.Module, *values: Any, **kwargs: Any) -> Any:
            if is_first:
                value = self._begin(model, values, kwargs)
            else:
                value = values[0] if len(values) == 1 else values
            if has_layers:
                for layer in model.get_submodule(self._path).children():
                    value = self._each(layer, value, kwargs=kwargs)
            return self._end(model, value, kwargs) if is_last else value

        forward.__signature__ = self._signature(is_first, is_last)  # type: ignore[attr-defined]
        part.__dict__["forward"] = MethodType(forward, part)
        part.__dict__["pipert_paths"] = keep
        part.__dict__["pipert_layers"] = MethodType(partial(_modules_at, keep), part)
        return part

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._before.function is None:
            return args[0] if len(args) == 1 else args
        return self._before(model, *args, kwargs=kwargs)

    def _end(self, model: nn.Module, value: Any, kwargs: Mapping[str, Any]) -> Any:
        return value if self._after.function is None else self._after(model, value, kwargs=kwargs)

    def _signature(self, is_first: bool, is_last: bool) -> inspect.Signature:
        """Of a part's forward: what the batch must or may have for it."""
        steps = [self._before] * is_first + [self._each] + [self._after] * is_last
        given = inspect.Parameter("model", inspect.Parameter.POSITIONAL_ONLY)
        found: dict[str, inspect.Parameter] = {"model": given}
        if not is_first or self._before.function is None:
            found["values"] = inspect.Parameter("values", inspect.Parameter.VAR_POSITIONAL)
        for step in steps:
            for parameter in step.further:
                is_own = step is self._before or parameter.kind is parameter.VAR_KEYWORD
                kind = parameter.kind if is_own else parameter.KEYWORD_ONLY
                found.setdefault(parameter.name, parameter.replace(kind=kind))
        return inspect.Signature(sorted(found.values(), key=lambda parameter: parameter.kind))


class _Step:
    """One of the user's functions. Of keyword arguments it is given those that it takes."""

    def __init__(self, name: str, function: Callable[..., Any] | None, num_fixed: int) -> None:
        self.function = function
        self._name = name
        parameters = [] if function is None else [*inspect.signature(function).parameters.values()]
        self.further = parameters[num_fixed:]
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in self.further)
        self._names = {parameter.name for parameter in self.further}

    def __call__(self, *args: Any, kwargs: Mapping[str, Any]) -> Any:
        assert self.function is not None
        taken = {k: v for k, v in kwargs.items() if self._takes_any or k in self._names}
        return self.function(*args, **taken)


class _Watch:
    """Notes which modules and parameters are looked up in a model.

    Attributes:
        model: a copy, to be given to the user's function.
        used: their paths, in order.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        self.used: dict[str, None] = {}
        self._path = path
        self.model = self._copy(model, "")

    def _copy(self, module: Any, prefix: str) -> nn.Module:
        kind = type(module)

        def look_up(copied: nn.Module, name: str) -> Any:
            found = kind.__getattr__(copied, name)
            path = prefix + name
            if f"{self._path}.".startswith(f"{path}."):  # it, or a module that it is in
                return found if path == self._path else self._copy(found, f"{path}.")
            if name in copied._modules or name in copied._parameters or name in copied._buffers:
                self.used.setdefault(path)
            return found

        copied = _bare_copy(module)
        copied.__class__ = type(kind.__name__, (kind,), {"__getattr__": look_up})
        for table in ("_parameters", "_buffers", "_modules"):
            copied.__dict__[table] = dict(module.__dict__[table])
        return copied


def _modules_at(paths: Sequence[str], model: nn.Module) -> list[nn.Module]:
    found = []
    for path in paths:
        owner, _, name = path.rpartition(".")
        inside = model.get_submodule(owner)
        if name in inside._modules:
            found.append(inside.get_submodule(name))
    return found


def _call(layer: nn.Module, value: Any) -> Any:
    return layer(value)


def _with_only(module: nn.Module, prefix: str, keep: Sequence[str]) -> nn.Module:
    """A copy that has what is at some paths alone, and shares it."""
    copied = _bare_copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        for name, entry in module.__dict__[table].items():
            path = prefix + name
            if path in keep:
                copied.__dict__[table][name] = entry
            elif table == "_modules" and any(kept.startswith(f"{path}.") for kept in keep):
                copied.__dict__[table][name] = _with_only(entry, f"{path}.", keep)
    return copied


def _bare_copy(module: nn.Module) -> nn.Module:
    """The same class and attributes, but neither parameters nor buffers, modules and hooks."""
    copied = module.__class__.__new__(module.__class__)
    nn.Module.__init__(copied)
    own = copied.__dict__.keys()
    others = {name: value for name, value in module.__dict__.items() if name not in own}
    copied.__dict__.update(others)
    copied.__dict__["training"] = module.training
    copied.__dict__["_non_persistent_buffers_set"] = module._non_persistent_buffers_set
    return copied
