"""Cuts a model between layers that run one after the other, as its structure has them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from pipert.balancing.agreed_cuts import ALONE, AgreedCuts
from pipert.balancing.balance import Balance, Cuts, check_balance, costs_of
from pipert.balancing.example_values import is_on_meta, to_meta
from pipert.balancing.layer_profile import LayerProfile, profile_in_turn
from pipert.balancing.stage_placement import PlacementLike
from pipert.split.cuts import cuts_of
from pipert.split.layer_list import LayerList, ListedModel
from pipert.split.layer_paths import in_order, layers_of_model, list_of_layers
from pipert.split.layer_spec import BuiltStage, ties_of
from pipert.split.same_output import check_same_in_turn, evaluating
from pipert.stages import Stages

_Layer = TypeVar("_Layer")


def split(
    model: nn.Module | Sequence[Any],
    num_stages: int | None = None,
    at: Sequence[str] | None = None,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    balance: Balance = "parameters",
    *,
    layers: str | Sequence[str] | LayerList | None = None,
    memory_limit: float | Sequence[float] | None = None,
    placement: PlacementLike = None,
    agreed: AgreedCuts = ALONE,
) -> Stages:
    """Cuts a model into stages that hold its own submodules and parameters.

    An nn.Sequential (nested ones too) is cut between its layers. Any other model is taken to run
    its children one after the other, in the order in which they were registered (a ModuleList's
    entries likewise), or in that of `layers`; that this is so is checked with `example_args`, bit
    for bit. A LayerList says what a model does around a list of layers.

    Args:
        model: the unpartitioned model, whose submodules the stages share; or a list of its layers:
            modules, LayerSpecs, or functions without arguments that build one. A stage with one
            that is still to be built is built as a whole on its own rank alone.
        num_stages: how many stages to cut it into; not together with `at`.
        at: the layers that begin a new stage, by path ("layers.4"), in order.
        example_args: positional arguments of one forward, of one microbatch. Needed unless the
            model is an nn.Sequential, and for "time" and "memory".
        example_kwargs: keyword arguments of one forward, for a LayerList: layers that run one
            after the other take one value.
        balance: of what the stages of each rank have as little as can be, the one that has most:
            "parameters"; "time" of forward and backward, measured layer by layer on
            `example_args` (on the meta device: estimated); "memory" of parameters, gradients, two
            moments of an optimizer and activations; or `balance(path, layer)`, a number for each
            layer. "uniform": as many layers in each. Or the number of layers of each stage.
        layers: the children that run, by path in the order in which they do: of a ModuleList or a
            Sequential its entries. Or the path of one ModuleList: what was registered before it,
            and before a module that it is in, runs before it, and so on. Or a LayerList.
        memory_limit: the bytes that the stages of a rank may take (see "memory"); one number, or
            one for each rank.
        placement: which rank owns which stage: a Placement, the rank of each stage, "v" (two
            stages a rank, down and up again), or the Schedule that will run, which also says how
            many activations a stage holds. None: one stage a rank.
        agreed: whose cuts these are.

    Returns:
        The stages, with the parameter names of the unpartitioned model, and with their costs where
        layers were measured.

    Raises:
        TypeError: `model` is not a module.
        ValueError: the model can't be cut as asked for; the message says why.
    """
    check_types(model, num_stages, at, example_args, layers)
    check_balance(balance)
    example = (example_args, example_kwargs or {})
    pieces: _Listed | _Built | _Ordered
    if isinstance(layers, LayerList):
        pieces = _Listed(model, layers, *example)
    elif isinstance(model, nn.Module):
        pieces = _Ordered(model, layers, *example)
    else:
        pieces = _Built(model, layers, *example)
    cuts = cuts_of(
        pieces.named,
        num_stages,
        at,
        balance,
        memory_limit=memory_limit,
        placement=placement,
        agreed=agreed,
        profile=pieces.profile,
    )
    return pieces.stages(cuts)


def check_types(model: Any, num_stages: Any, at: Any, example_args: Any, layers: Any) -> None:
    """Checks that each argument is of a type that `split` takes.

    Raises:
        TypeError: one isn't.
    """
    if not isinstance(model, nn.Module) and not isinstance(model, list | tuple):
        raise TypeError(
            f"model must be an nn.Module or a list of layers, got {type(model).__name__}"
        )
    if num_stages is not None and (isinstance(num_stages, bool) or not isinstance(num_stages, int)):
        raise TypeError(f"num_stages must be an integer, got {num_stages!r}")
    if at is not None and (isinstance(at, str) or not isinstance(at, Sequence)):
        raise TypeError(f'at must be a list of paths such as ["layers.4"], got {at!r}')
    if at is not None and not all(isinstance(path, str) for path in at):
        kinds = ", ".join(type(path).__name__ for path in at)
        raise TypeError(f'at must be a list of paths such as ["layers.4"], got a list of {kinds}')
    if example_args is not None and not isinstance(example_args, tuple):
        raise TypeError(f"example_args must be a tuple, got {type(example_args).__name__}")
    if not (layers is None or isinstance(layers, LayerList)) and not (
        isinstance(layers, Sequence) and all(isinstance(path, str) for path in layers)
    ):
        raise TypeError(
            'layers must be paths such as ["embed", "layers", "head"], one of them, or a '
            f"LayerList; got {layers!r}"
        )


class _Ordered:
    """Layers of a model that run one after the other.

    Attributes:
        named: pieces that can be a stage, each with the paths that name it.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] | None,
        args: tuple[Any, ...] | None,
        kwargs: Mapping[str, Any],
    ) -> None:
        _refuse_kwargs(kwargs)
        self._model = model
        self._is_listed = layers is not None
        self._args = args
        self._layers = layers_of_model(model, layers)
        self.named = [((path,), layer) for path, layer in self._layers]

    def profile(self) -> list[LayerProfile]:
        return profile_in_turn(self._layers, _required(self._args))

    def stages(self, cuts: Cuts) -> Stages:
        result = Stages([in_order(part) for part in _cut(self._layers, cuts)], costs=costs_of(cuts))
        _check_names(self._model, result)
        self._check_order(result)
        return result

    def _check_order(self, stages: Stages) -> None:
        """Checks that the model is its layers, one after the other, unless it says so itself."""
        model, on_meta = self._model, is_on_meta(self._model)
        if self._args is None or on_meta:
            if not (type(model).forward is nn.Sequential.forward or (on_meta and self._is_listed)):
                reason = (
                    "None" if self._args is None else "a model on meta: name them, layers=[...]"
                )
                raise ValueError(
                    f"{type(model).__name__} is not an nn.Sequential: expected example_args, to "
                    f"check that its children run one after the other; got {reason}"
                )
            return
        if len(self._args) != 1:
            raise ValueError(
                "layers that run one after the other take one value: expected one example "
                f"argument, got {len(self._args)}"
            )
        paths = " -> ".join(path for path, _ in self._layers)
        how = f"does not run its children one after the other ({paths})"
        check_same_in_turn(model, stages, how, self._args, {})


class _Listed:
    """A model around a list of layers; as `_Ordered`."""

    def __init__(
        self,
        model: Any,
        around: LayerList,
        args: tuple[Any, ...] | None,
        kwargs: Mapping[str, Any],
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"a LayerList is of a model, got {type(model).__name__}")
        self._model = model
        self._args = _required(args, "to see what runs before and after the list of layers")
        self._kwargs = kwargs
        container = list_of_layers(model, around.path)
        example = to_meta((self._args, kwargs)) if is_on_meta(model) else (self._args, kwargs)
        with evaluating(model):
            self._listed = ListedModel(model, around, container, *example)
        pieces = self._listed.pieces
        self.named = [(paths, self._listed.part(i, i + 1)) for i, paths in enumerate(pieces)]

    def profile(self) -> list[LayerProfile]:
        layers = [(", ".join(paths), part) for paths, part in self.named]
        return profile_in_turn(layers, self._args, self._kwargs)

    def stages(self, cuts: Cuts) -> Stages:
        ends = list(itertools.accumulate(cuts.sizes))
        parts = [self._listed.part(*edges) for edges in itertools.pairwise([0, *ends])]
        result = Stages(parts, costs=costs_of(cuts))
        _check_names(self._model, result)
        if not is_on_meta(self._model):
            how = "is not what its LayerList runs"
            check_same_in_turn(self._model, result, how, self._args, self._kwargs)
        return result


class _Built:
    """A list of layers, some of them still to be built; as `_Ordered`."""

    def __init__(
        self,
        model: Sequence[Any],
        layers: Any,
        args: tuple[Any, ...] | None,
        kwargs: Mapping[str, Any],
    ) -> None:
        _refuse_kwargs(kwargs)
        if layers is not None:
            raise ValueError(f"model is a list of layers: expected no layers=, got {layers!r}")
        self._args = args
        self._layers = [(str(index), layer) for index, layer in enumerate(model)]
        if not self._layers:
            raise ValueError("model has no layers to cut between: got an empty list")
        skeleton = BuiltStage(self._layers).skeleton
        self.named = [((name,), skeleton.get_submodule(name)) for name, _ in self._layers]

    def profile(self) -> list[LayerProfile]:
        layers = [(paths[0], layer) for paths, layer in self.named]
        return profile_in_turn(layers, _required(self._args))

    def stages(self, cuts: Cuts) -> Stages:
        built = [BuiltStage(part) for part in _cut(self._layers, cuts)]
        return Stages(
            [stage.skeleton if stage.is_built else stage for stage in built],
            names=[list(stage.skeleton.state_dict(keep_vars=True)) for stage in built],
            tied=ties_of(built),
            costs=costs_of(cuts),
        )


def _cut(layers: Sequence[_Layer], cuts: Cuts) -> list[Sequence[_Layer]]:
    ends = list(itertools.accumulate(cuts.sizes))
    return [layers[begin:end] for begin, end in itertools.pairwise([0, *ends])]


def _required(
    args: tuple[Any, ...] | None, why: str = "to see what layers take"
) -> tuple[Any, ...]:
    if args is None:
        raise ValueError(
            f"{why}: expected example_args, the arguments of one microbatch's forward; got None"
        )
    return args


def _refuse_kwargs(kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise ValueError(
            "layers that run one after the other take one value: expected no example_kwargs, got "
            + ", ".join(kwargs)
        )


def _check_names(model: nn.Module, stages: Stages) -> None:
    """Parameters that belong to the model itself, and to no layer, would be lost."""
    kept = {name for names in stages.names for name in names}
    lost = [name for name in model.state_dict() if name not in kept]
    if lost:
        raise ValueError(
            f"every parameter and buffer must belong to a layer; {', '.join(lost)} "
            f"belong to {type(model).__name__} itself, or to what doesn't run"
        )
