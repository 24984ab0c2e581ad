"""Where a transformers model is cut: at the units that are named, or as a balance has it."""

from collections.abc import Sequence

from torch import nn

from pipert.balancing.agreed_cuts import AgreedCuts
from pipert.balancing.balance import Balance, Cuts, layer_cost
from pipert.balancing.layer_profile import LayerProfile
from pipert.balancing.stage_placement import PlacementLike, StagePlacement
from pipert.integrations.transformers.plan_example import PlanExample
from pipert.integrations.transformers.plan_units import PlanUnits
from pipert.split.cuts import cuts_of


def cut_units(
    units: PlanUnits,
    num_stages: int | None,
    at: Sequence[str] | None,
    balance: Balance,
    *,
    memory_limit: float | Sequence[float] | None,
    placement: PlacementLike,
    agreed: AgreedCuts,
    example: PlanExample | None,
) -> Cuts:
    """How many units each stage has.

    Args:
        units: of the model.
        num_stages: see `split_by_plan`; so are the others.
        at: the units that begin a stage, each by its first module.
        balance: of the layers, and of what is before and behind them.
        memory_limit: of a rank.
        placement: of the stages.
        agreed: whose cuts these are.
        example: to see what layers take; None: there is none.

    Raises:
        ValueError, TypeError: the model can't be cut so.
    """
    if at is None:
        balance = _by_layers(units, num_stages, balance, memory_limit, placement)
    named = {next(iter(modules), ""): modules for modules in units.modules}

    def of_unit(name: str, unit: nn.Module) -> float:
        assert callable(balance)
        return sum(layer_cost(balance, path, module) for path, module in named[name].items())

    def profile() -> list[LayerProfile]:
        if example is None:
            raise ValueError(
                "to see what layers take: expected example_args or example_kwargs, the arguments "
                "of one microbatch's forward; got neither"
            )
        return example.profile()

    return cuts_of(
        [((name,), nn.ModuleList(modules.values())) for name, modules in named.items()],
        num_stages,
        at,
        of_unit if callable(balance) else balance,
        memory_limit=memory_limit,
        placement=placement,
        agreed=agreed,
        profile=profile,
    )


def _by_layers(
    units: PlanUnits,
    num_stages: int | None,
    balance: Balance,
    memory_limit: float | Sequence[float] | None,
    placement: PlacementLike,
) -> Balance:
    """The balance in units, where it is one in layers: what is before and behind them is more."""
    if num_stages is not None and not 1 <= num_stages <= units.num_layers:
        raise ValueError(
            f"num_stages must be from 1 to {units.num_layers} (the model's layers), got "
            f"{num_stages}"
        )
    if balance == "uniform" and memory_limit is None:
        num_stages = StagePlacement(placement, num_stages).num_stages
        size, more = divmod(units.num_layers, num_stages)
        balance = [size + (stage < more) for stage in range(num_stages)]
    if isinstance(balance, str) or callable(balance):
        return balance
    return _with_ends(units, list(balance), num_stages)


def _with_ends(units: PlanUnits, layers: list[int], num_stages: int | None) -> list[int]:
    """Units by stage, of layers by stage."""
    count = len(layers) if num_stages is None else num_stages
    inside = layers[1:-1] if units.has_tail else layers[1:]
    fits = len(layers) == count and sum(layers) == units.num_layers
    if not fits or min(layers) < 0 or 0 in inside:
        raise ValueError(
            f"balance must be {count} numbers with the sum {units.num_layers} (the model's "
            f"layers), positive but for the first and the last, got {layers}"
        )
    ends = (0, count - 1 if units.has_tail else 0)
    return [size + ends.count(stage) for stage, size in enumerate(layers)]
