"""Stages: a model in pieces, and what they hand to each other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from pipert import _C
from pipert.balancing.stage_table import layers_of, stage_table
from pipert.tied_weights.tied import Tied as Tied
from pipert.tied_weights.tied import check_ties, find_ties, merge_ties, ties_by_name


@dataclass(frozen=True)
class Value:
    """What one stage makes for others: a tensor, a nested structure of tensors, or None.

    Attributes:
        name: unique in the model, such as "hidden_2".
        maker: the stage that makes it.
        readers: the stages that take it, all of them later ones, ascending; at least one.
        differentiable: whether a gradient comes back for it. False for integers, masks, and what
            no parameter has a part in.
        bytes: of the microbatch that the model was split with; None: not known.
    """

    name: str
    maker: int
    readers: tuple[int, ...]
    differentiable: bool = True
    bytes: int | None = None


@dataclass(frozen=True)
class StageSpec:
    """How a stage is called: `stage(*inputs, **arguments)`, and what it returns.

    Attributes:
        inputs: names of Values, in the order of its positional arguments.
        outputs: names of Values, in the order of the tuple that it returns, of one entry too. The
            last stage has none: it returns what the model does.
        arguments: of the batch, by the names that the model's forward has for them.
        layers: paths in the unpartitioned model, in the order in which they run.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


class StageCosts(_C.Costs):
    """What the stages of a split model take, in seconds and bytes, for one microbatch.

    Args:
        is_estimated: whether the times are computed from operations and bytes, not measured.
        **costs: as Costs has them.
    """

    def __init__(self, *, is_estimated: bool = False, **costs: Any) -> None:
        super().__init__(**costs)
        self.is_estimated = is_estimated


class SkipEdge(NamedTuple):
    """Values that go from one stage to another that isn't the next.

    Attributes:
        maker: the stage that makes them.
        reader: the stage that takes them.
        values: their names.
    """

    maker: int
    reader: int
    values: tuple[str, ...]


class Stages(Sequence[Any]):
    """The pieces of a model in order, with what they hand to each other.

    What `pipert.split` returns. Any sequence of modules, functions or builders does as well: then
    each stage gets what the one before it returned, as it does without `specs`.

    Args:
        modules: for each stage a module, or a function without arguments that builds one.
        specs: how each stage is called; None: with what the one before returned.
        values: what the stages of `specs` hand to each other.
        tied: parameters that several stages use, beside those that modules share as objects.
        arguments: with specs: the positional arguments of the model's forward, by name, in order.
        fixed: with specs: arguments of the model's forward that the stages have inside, by name,
            with the only value that they may be given as.
        names: by stage, the names of its parameters and buffers in the unpartitioned model; needed
            where there are builders.
        costs: what the stages take, if it is known.

    Attributes:
        specs, values, arguments, fixed, names, costs: as given; names of modules are their own.
        tied: all of them, those of modules that share objects found here.
        layers: by stage, the paths of its layers, or what its names begin with if no more is known.

    Raises:
        ValueError: specs and values don't fit together, or a tied parameter isn't there; the
            message says where.
    """

    def __init__(
        self,
        modules: Sequence[Any],
        *,
        specs: Iterable[StageSpec] | None = None,
        values: Iterable[Value] = (),
        tied: Iterable[Tied] = (),
        arguments: Iterable[str] = (),
        fixed: Mapping[str, Any] = MappingProxyType({}),
        names: Sequence[Sequence[str]] | None = None,
        costs: _C.Costs | None = None,
    ) -> None:
        self._modules = tuple(modules)
        self.specs = None if specs is None else tuple(specs)
        self.values = tuple(values)
        self.arguments = tuple(arguments)
        self.fixed = dict(fixed)
        self.costs = costs
        if names is None:
            names = [_own_names(module, index) for index, module in enumerate(self._modules)]
        self.names = [list(of) for of in names]
        _check_counts(self)
        _check_values(self)
        self.layers = [layers_of(self, index) for index in range(len(self))]
        self.tied = merge_ties([*check_ties(tied, self.names), *find_ties(self._modules)])

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: Any) -> Any:
        return self._modules[index]

    def tie(self, groups: Iterable[Sequence[str]]) -> None:
        """Declares that parameters are one, beside those that are known to be.

        Args:
            groups: for each such parameter all its names in the unpartitioned model.

        Raises:
            ValueError, TypeError: these aren't names of parameters; the message says which.
        """
        self.tied = merge_ties([*self.tied, *ties_by_name(groups, self.names)])

    @property
    def skip_edges(self) -> list[SkipEdge]:
        """The values that pass over a stage, by maker and reader."""
        pairs: dict[tuple[int, int], list[str]] = {}
        for value in self.values:
            for reader in value.readers:
                if reader > value.maker + 1:
                    pairs.setdefault((value.maker, reader), []).append(value.name)
        return [SkipEdge(*pair, tuple(names)) for pair, names in sorted(pairs.items())]

    def with_modules(self, modules: Sequence[Any]) -> "Stages":
        """The same stages, made of others: of builders, say."""
        return Stages(
            modules,
            specs=self.specs,
            values=self.values,
            tied=self.tied,
            arguments=self.arguments,
            fixed=self.fixed,
            names=self.names,
            costs=self.costs,
        )

    def __str__(self) -> str:
        return stage_table(self)


def _own_names(module: Any, stage: int) -> list[str]:
    if not hasattr(module, "state_dict"):
        raise ValueError(
            f"modules[{stage}] is a {type(module).__name__}, whose parameters aren't known: "
            "expected names= where there are builders, got None"
        )
    return list(module.state_dict(keep_vars=True))


def _check_counts(stages: Stages) -> None:
    if len(stages.names) != len(stages):
        raise ValueError(f"names must have {len(stages)} entries, got {len(stages.names)}")
    if stages.specs is None:
        if stages.values:
            raise ValueError(f"expected specs that say who takes {stages.values[0].name}, got None")
    elif len(stages.specs) != len(stages):
        raise ValueError(f"specs must have {len(stages)} entries, got {len(stages.specs)}")


def _check_values(stages: Stages) -> None:
    """Checks that makers, readers and specs say the same of each value."""
    if stages.specs is None:
        return
    by_name: dict[str, Value] = {}
    for value in stages.values:
        if by_name.setdefault(value.name, value) is not value:
            raise ValueError(f"values must have names of their own, got {value.name} twice")
        _check_order(value, len(stages))
    for index, spec in enumerate(stages.specs):
        made = {value.name for value in stages.values if value.maker == index}
        read = {value.name for value in stages.values if index in value.readers}
        _check_names(f"specs[{index}].outputs", spec.outputs, made, "values that it makes")
        _check_names(f"specs[{index}].inputs", spec.inputs, read, "values that it reads")


def _check_order(value: Value, num_stages: int) -> None:
    readers = list(value.readers)
    if not 0 <= value.maker < num_stages or not readers or readers != sorted(set(readers)):
        raise ValueError(
            f"value {value.name} must be made by a stage from 0 to {num_stages - 1} and have "
            f"readers in ascending order, got maker {value.maker} and readers {readers}"
        )
    if readers[0] <= value.maker or readers[-1] >= num_stages:
        raise ValueError(
            f"value {value.name} must be read by stages from {value.maker + 1} to "
            f"{num_stages - 1}, got {readers}"
        )


def _check_names(what: str, got: tuple[str, ...], expected: set[str], meaning: str) -> None:
    if set(got) != expected or len(set(got)) != len(got):
        raise ValueError(
            f"{what} must name the {meaning}, each once: {', '.join(sorted(expected)) or 'none'}; "
            f"got {', '.join(got) or 'none'}"
        )
