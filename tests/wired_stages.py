"""Models whose stages hand values to each other in any way: hand-written ones, and random ones."""

import copy
import random
from dataclasses import dataclass
from typing import Any

import torch
from plain_loop import scheduled_loop
from run_in_turn import run_in_turn
from torch import nn

import pipert
from pipert.stages import Stages, StageSpec, Value

WIDTH = 8


class Unpartitioned(nn.Module):
    """The stages one after the other in one graph, with their parameters' own names."""

    def __init__(self, stages):
        super().__init__()
        self._stages = [stages]  # not a child: names stay as they are
        for stage in stages:
            for name, child in stage.named_children():
                self.add_module(name, child)
            for name, parameter in stage.named_parameters(recurse=False):
                self.register_parameter(name, parameter)

    @property
    def stages(self):
        return self._stages[0]

    def forward(self, x):
        return run_in_turn(self.stages, (), {"x": x})


def unpartitioned(stages):
    """A model of copies of the stages."""
    copies = copy.deepcopy(list(stages))
    return Unpartitioned(
        Stages(copies, specs=stages.specs, values=stages.values, arguments=stages.arguments)
    )


def wired_loop(model, schedule, x, target, loss_fn=nn.functional.mse_loss):
    """As scheduled_loop, of an Unpartitioned."""
    return scheduled_loop(model, model.stages, schedule, x, target, loss_fn)


class Down(nn.Module):
    """A stage of a U-Net that makes its input for the other side, and something smaller."""

    def __init__(self, name, width):
        super().__init__()
        self.add_module(name, nn.Linear(width, width // 2))
        self.name = name

    def forward(self, x):
        h = x.tanh()
        return h, getattr(self, self.name)(h)


class Bottom(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2 * width))

    def forward(self, small):
        return (self.bottom(small) + small.repeat(1, 2),)


class Up(nn.Module):
    """Uses what came past more than once."""

    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(2 * width, width)

    def forward(self, skipped, h):
        return self.up(torch.cat([skipped, h], 1)) * skipped.sin() + skipped


def u_net(width=WIDTH, seed=0):
    """Three stages, the first of which makes a value for the last."""
    torch.manual_seed(seed)
    return Stages(
        [Down("down", width), Bottom(width // 2), Up(width)],
        specs=[
            StageSpec(outputs=("skipped", "small"), arguments=("x",)),
            StageSpec(inputs=("small",), outputs=("h",)),
            StageSpec(inputs=("skipped", "h")),
        ],
        values=[Value("skipped", 0, (2,)), Value("small", 0, (1,)), Value("h", 1, (2,))],
        arguments=["x"],
    )


# --- random ones ---------------------------------------------------------------------------

# What becomes of a tensor in a stage that uses it.
_USES = (
    lambda h, t, layer: h + layer(t),
    lambda h, t, layer: h + t * 0.37,
    lambda h, t, layer: h * t.sin(),
    lambda h, t, layer: h + t.view(-1, 2, WIDTH // 2).transpose(1, 2).flatten(1),
    lambda h, t, layer: layer(h) * t.tanh() + t,
)


@dataclass(frozen=True)
class Plan:
    """Of one stage: what it does.

    takes_x: whether the batch comes to it too.
    uses: by input, which of _USES it is put to, none to three times.
    makes: by output, its kind.
    trains: whether its layers have gradients.
    """

    takes_x: bool
    uses: tuple[tuple[int, ...], ...]
    makes: tuple[str, ...]
    trains: bool


# By kind: how a value is made of the stage's hidden state, and whether a gradient may come back.
_KINDS = {
    "tensor": (lambda h: h * 1.1, True),
    "nested": (lambda h: {"a": h * 2.0, 3: [h.cos(), (None, 1.5, h.detach())]}, True),
    "integers": (lambda h: (h > 0).long(), False),
    "mask": (lambda h: (h > 0, h.detach().sigmoid()), False),
    "none": (lambda h: None, False),
    "nothing": (lambda h: (), False),
}


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


class RandomStage(nn.Module):
    """Does what its plan says."""

    def __init__(self, index, plan, is_last):
        super().__init__()
        self.plan = plan
        self.is_last = is_last
        self.layers = f"stage{index}"
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(2)]
        self.add_module(self.layers, nn.ModuleList(layers).requires_grad_(plan.trains))

    def forward(self, *values: Any, x: torch.Tensor | None = None) -> Any:
        first, second = getattr(self, self.layers)
        tensors = [[t.to(torch.float32) for t in _tensors(value)] for value in values]
        start = x if x is not None else next(t for of in tensors for t in of)
        h = first(start.detach())
        for uses, of in zip(self.plan.uses, tensors, strict=True):
            for use in uses:
                for t in of:
                    h = _USES[use](h, t, second)
        if self.is_last:
            return h
        h = h.tanh()
        return tuple(_KINDS[kind][0](h) for kind in self.plan.makes)


def random_stages(seed, num_stages):
    """Stages that exchange values in ways that depend on the seed, each of which trains some."""
    pick = random.Random(seed)
    torch.manual_seed(seed)
    values, inputs = [], [[] for _ in range(num_stages)]
    made = []
    for maker in range(num_stages - 1):
        kinds = [pick.choice(["tensor", "nested"])]
        kinds += [pick.choice(list(_KINDS)) for _ in range(pick.randint(0, 2))]
        pick.shuffle(kinds)
        made.append(kinds)
        for number, kind in enumerate(kinds):
            later = range(maker + 1, num_stages)
            readers = sorted(pick.sample(later, pick.randint(1, min(3, len(later)))))
            name = f"{kind}_{maker}_{number}"
            values.append(Value(name, maker, tuple(readers), _KINDS[kind][1]))
            for reader in readers:
                inputs[reader].append(name)
    modules, specs = [], []
    for index in range(num_stages):
        pick.shuffle(inputs[index])
        kinds = made[index] if index < num_stages - 1 else []
        read = [name.split("_")[0] for name in inputs[index]]
        trains = index == num_stages - 1 or pick.random() < 0.8
        takes_x = set(read) <= {"none", "nothing"} or pick.random() < 0.4
        plan = Plan(
            takes_x=takes_x,
            uses=tuple(
                # A stage that trains nothing must hand on the gradients that it is given.
                tuple(pick.randrange(len(_USES)) for _ in range(pick.randint(not trains, 3)))
                for _ in read
            ),
            makes=tuple(kinds),
            trains=trains,
        )
        modules.append(RandomStage(index, plan, index == num_stages - 1))
        specs.append(
            StageSpec(
                inputs=tuple(inputs[index]),
                outputs=tuple(f"{kind}_{index}_{number}" for number, kind in enumerate(kinds)),
                arguments=("x",) if takes_x else (),
            )
        )
    pick.shuffle(values)
    return pipert.Stages(modules, specs=specs, values=values, arguments=["x"])
