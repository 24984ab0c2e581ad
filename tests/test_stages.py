"""Stages: their specs and values say the same of each value, or say where they don't."""

import pytest
import torch
from run_in_turn import run_in_turn
from torch import Tensor, nn

import pipert
from pipert.stages import SkipEdge, StageSpec, Value


class Down(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x)
        return y, y.relu()


class Middle(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


class Up(nn.Linear):
    def forward(self, skipped: Tensor, x: Tensor) -> Tensor:
        return super().forward(x) + skipped


def specs() -> list[StageSpec]:
    return [
        StageSpec((), ("skipped", "hidden_0"), ("x",)),
        StageSpec(("hidden_0",), ("hidden_1",)),
        StageSpec(("skipped", "hidden_1")),
    ]


def values() -> list[Value]:
    return [Value("skipped", 0, (2,)), Value("hidden_0", 0, (1,)), Value("hidden_1", 1, (2,))]


def unet() -> list[nn.Module]:
    return [Down(3, 3), Middle(3, 3), Up(3, 3)]


def test_a_value_that_passes_over_a_stage_is_a_skip_edge():
    stages = pipert.Stages(unet(), specs=specs(), values=values(), arguments=["x"])
    assert stages.skip_edges == [SkipEdge(0, 2, ("skipped",))]


def test_stages_in_turn_hand_each_value_to_its_readers():
    down, middle, up = unet()
    stages = pipert.Stages([down, middle, up], specs=specs(), values=values(), arguments=["x"])
    x = torch.randn(2, 3)
    skipped, hidden = down(x)
    assert torch.equal(run_in_turn(stages, (x,)), up(skipped, *middle(hidden)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Value("skipped", 0, ()), "must be made by a stage from 0 to 2 and have readers"),
        (Value("skipped", 0, (2, 1)), "readers in ascending order"),
        (Value("skipped", 3, (2,)), "got maker 3"),
        (Value("skipped", 1, (1,)), "must be read by stages from 2 to 2"),
        (Value("skipped", 0, (3,)), "must be read by stages from 1 to 2"),
        (Value("other", 0, (2,)), r"specs\[0\].outputs must name the values that it makes"),
        (Value("skipped", 0, (1, 2)), r"specs\[1\].inputs must name the values that it reads"),
        (Value("hidden_0", 0, (2,)), "got hidden_0 twice"),
    ],
)
def test_values_that_do_not_fit_the_specs_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        pipert.Stages(unet(), specs=specs(), values=[value, *values()[1:]])


def test_specs_for_another_number_of_stages_are_refused():
    with pytest.raises(ValueError, match="specs must have 3 entries, got 2"):
        pipert.Stages(unet(), specs=specs()[:2], values=[])


def test_values_without_specs_are_refused():
    with pytest.raises(ValueError, match="expected specs that say who takes skipped"):
        pipert.Stages(unet(), values=values())


def test_builders_need_names():
    with pytest.raises(ValueError, match=r"modules\[1\] is a function.*expected names="):
        pipert.Stages([Middle(3, 3), lambda: Middle(3, 3)])
