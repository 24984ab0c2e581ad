"""Cuts a model into stages: nn.Sequential, and models whose children run one after the other."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipert.stages import Stages, leaf_children

Balance = str | Sequence[int]


def split(
    model: nn.Module | Sequence[Any],
    num_stages: int | None = None,
    at: Sequence[str] | None = None,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    balance: Balance = "parameters",
) -> Stages:
    """Cuts a model into stages that hold its own submodules and parameters.

    An nn.Sequential (nested ones too) is cut between its layers. Any other model is taken to run
    its children one after the other, in the order in which they were registered (a ModuleList's
    entries likewise); that this is so is checked with `example_args`, bit for bit.

    Args:
        model: the unpartitioned model, whose submodules the stages share; or a list of its layers,
            modules or functions without arguments that build one.
        num_stages: how many stages to cut it into; not together with `at`.
        at: the layers that begin a new stage, by path ("layers.4"), in order.
        example_args: positional arguments of one forward. Needed unless the model is an
            nn.Sequential.
        example_kwargs: must be empty: layers that run one after the other take one value.
        balance: with num_stages: "parameters" (the largest stage has as few parameters as
            possible), "uniform" (as many layers in each), or the number of layers of each stage.

    Returns:
        The stages, with the parameter names of the unpartitioned model.

    Raises:
        TypeError: `model` is not a module.
        ValueError: the model can't be cut as asked for; the message says why.
    """
    if not isinstance(model, nn.Module):
        if not isinstance(model, list | tuple):
            raise TypeError(
                f"model must be an nn.Module or a list of layers, got {type(model).__name__}"
            )
        model = nn.Sequential(*(_built(layer, i) for i, layer in enumerate(model)))
    _check_types(num_stages, at, example_args, balance)
    if example_kwargs:
        raise ValueError(
            "layers that run one after the other take one value: expected no example_kwargs, got "
            + ", ".join(example_kwargs)
        )
    layers = _layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers to cut between")
    if at is not None:
        if num_stages is not None and num_stages != len(at) + 1:
            raise ValueError(
                f"at={list(at)} makes {len(at) + 1} stages, got num_stages={num_stages}"
            )
        sizes = _sizes_at([path for path, _ in layers], at)
    elif num_stages is not None:
        sizes = _sizes(layers, num_stages, balance)
    else:
        raise ValueError("expected num_stages or at, got neither")
    stages, start = [], 0
    for size in sizes:
        stages.append(_nest(layers[start : start + size]))
        start += size
    result = Stages(stages)
    _check_names(model, result)
    if example_args is not None:
        _check_same(model, result, example_args)
    elif type(model).forward is not nn.Sequential.forward:
        raise ValueError(
            f"{type(model).__name__} is not an nn.Sequential: expected example_args, to check that "
            "its children run one after the other; got None"
        )
    return result


def _built(layer: Any, index: int) -> nn.Module:
    """A module, or what a function without arguments builds."""
    built = layer if isinstance(layer, nn.Module) or not callable(layer) else layer()
    if not isinstance(built, nn.Module):
        raise TypeError(
            f"model[{index}] must be a module, or a function without arguments that builds one; "
            f"got {type(built).__name__}"
        )
    return built


def _check_types(num_stages: Any, at: Any, example_args: Any, balance: Any) -> None:
    if num_stages is not None and (isinstance(num_stages, bool) or not isinstance(num_stages, int)):
        raise TypeError(f"num_stages must be an integer, got {num_stages!r}")
    if at is not None and (isinstance(at, str) or not isinstance(at, Sequence)):
        raise TypeError(f'at must be a list of paths such as ["layers.4"], got {at!r}')
    if example_args is not None and not isinstance(example_args, tuple):
        raise TypeError(f"example_args must be a tuple, got {type(example_args).__name__}")
    if isinstance(balance, str):
        return
    if not isinstance(balance, Sequence) or not all(type(size) is int for size in balance):
        raise TypeError(
            f"balance must be 'parameters', 'uniform' or the layers of each stage, got {balance!r}"
        )


def _layers(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The layers in the order in which they are taken to run, by path."""
    _refuse_hooks(module, prefix)
    layers = []
    for name, child in module._modules.items():  # named_children() shows a shared layer once
        if child is None:
            continue
        path = f"{prefix}{name}"
        if type(child) in (nn.Sequential, nn.ModuleList) and len(child) > 0:  # type: ignore[arg-type]
            layers += _layers(child, f"{path}.")
        else:
            layers.append((path, child))
    return layers


def _refuse_hooks(container: nn.Module, prefix: str) -> None:
    """A container is taken apart, so its hooks would never run."""
    hooks = (
        container._forward_hooks,
        container._forward_pre_hooks,
        container._backward_hooks,
        container._backward_pre_hooks,
    )
    if any(hooks):
        name = prefix.rstrip(".") or type(container).__name__
        raise ValueError(f"{name} has hooks, and is cut between its children: they would be lost")


def _sizes_at(paths: list[str], at: Sequence[str]) -> list[int]:
    starts = [0]
    for point in at:
        inside = [
            i for i, path in enumerate(paths) if path == point or path.startswith(f"{point}.")
        ]
        if not inside:
            raise ValueError(
                f"at names no layer: expected one of {', '.join(paths)}; got {point!r}"
            )
        if inside[0] <= starts[-1]:
            raise ValueError(
                f"at must name layers after the first, in order; got {point!r} in {list(at)}"
            )
        starts.append(inside[0])
    return [end - start for start, end in zip(starts, [*starts[1:], len(paths)], strict=True)]


def _sizes(layers: list[tuple[str, nn.Module]], num_stages: int, balance: Balance) -> list[int]:
    if not 1 <= num_stages <= len(layers):
        raise ValueError(
            f"num_stages must be from 1 to {len(layers)} (the model's layers), got {num_stages}"
        )
    if isinstance(balance, str):
        if balance == "uniform":
            return [len(part) for part in torch.arange(len(layers)).tensor_split(num_stages)]
        if balance == "parameters":
            return balanced_sizes(
                [sum(p.numel() for p in layer.parameters()) for _, layer in layers], num_stages
            )
        raise ValueError(
            f"balance must be 'parameters', 'uniform' or the layers of each stage, got {balance!r}"
        )
    sizes = list(balance)
    if len(sizes) != num_stages or sum(sizes) != len(layers) or min(sizes) < 1:
        raise ValueError(
            f"balance must be {num_stages} positive numbers with the sum {len(layers)} (the "
            f"model's layers), got {sizes}"
        )
    return sizes


def balanced_sizes(weights: Sequence[float], num_parts: int) -> list[int]:
    """Cuts `weights` into contiguous parts so that the heaviest is as light as possible.

    Exact, by dynamic programming over (parts, end); each part has at least one element.

    Returns:
        The number of elements of each part.
    """
    sums = [0.0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    n = len(weights)
    # best[end]: (heaviest part, where the last part begins) of weights[:end] in `part` parts.
    best: list[tuple[float, int]] = [(sums[end], 0) for end in range(n + 1)]
    choices = [best]
    for part in range(2, num_parts + 1):
        row = [(0.0, 0)] * (n + 1)
        for end in range(part, n + 1):
            row[end] = min(
                (max(best[cut][0], sums[end] - sums[cut]), cut) for cut in range(part - 1, end)
            )
        best = row
        choices.append(best)
    sizes, end = [], n
    for row in reversed(choices):
        sizes.append(end - row[end][1])
        end = row[end][1]
    return sizes[::-1]


def _nest(layers: list[tuple[str, nn.Module]]) -> nn.Sequential:
    """Sequentials in Sequentials, so that each layer keeps its path."""
    groups: OrderedDict[str, list[tuple[str, nn.Module]]] = OrderedDict()
    for path, layer in layers:
        head, _, rest = path.partition(".")
        groups.setdefault(head, []).append((rest, layer))
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for head, inside in groups.items():
        is_layer = len(inside) == 1 and not inside[0][0]
        children[head] = inside[0][1] if is_layer else _nest(inside)
    return nn.Sequential(children)


def _check_names(model: nn.Module, stages: Stages) -> None:
    """Parameters that belong to the model itself, and to no layer, would be lost."""
    kept = {name for names in stages.names for name in names}
    lost = [name for name in model.state_dict() if name not in kept]
    if lost:
        raise ValueError(
            f"every parameter and buffer must belong to a layer; {', '.join(lost)} "
            f"belong to {type(model).__name__} itself"
        )


def _check_same(model: nn.Module, stages: Stages, example_args: tuple[Any, ...]) -> None:
    if len(example_args) != 1:
        raise ValueError(
            "layers that run one after the other take one value: expected one example argument, "
            f"got {len(example_args)}"
        )
    names = " -> ".join(path for path, _ in leaf_children(model))
    was_training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            expected = model(*example_args)
            value = example_args[0]
            for i, stage in enumerate(stages):
                try:
                    value = stage(value)
                except Exception as error:
                    raise ValueError(
                        f"{type(model).__name__} does not run its children one after the other "
                        f"({names}): stage {i} fails when it does"
                    ) from error
    finally:
        for module, training in was_training:
            module.training = training
    if not _equal(value, expected):
        raise ValueError(
            f"{type(model).__name__} does not run its children one after the other ({names}): the "
            "outputs differ"
        )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)
