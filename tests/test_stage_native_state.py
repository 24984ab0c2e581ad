"""What a native stage reads of its modules' attributes is what it would read as a module."""

import copy
import random
import types

import numpy
import pytest
import torch
from plain_loop import batch, same_bits
from torch import nn

import pipert
from pipert.native import state_of
from pipert.native.attributes import Attributes

pytestmark = pytest.mark.timeout(120)


def attributes(module):
    return Attributes(module, tuple(module.modules()))


class Reads(nn.Module):
    """Attributes of all sorts."""

    def __init__(self):
        super().__init__()
        self.linear, self.twin = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.2)
        self.k = 1
        self.text = "add"
        self.table = {"scale": 1.0, "nested": {"list": [1, 2]}}
        self.shifts = [0.0, 1.0]
        self.offset = torch.zeros(8)
        self.config = types.SimpleNamespace(scale=1.0, inner=types.SimpleNamespace(powers=[1.0]))

    def forward(self, x):
        h = self.dropout(self.norm(self.linear(x))) * self.k * self.table["scale"]
        h = h * self.config.scale * self.config.inner.powers[0]
        for shift in self.shifts:
            h = h + shift * self.table["nested"]["list"][-1]
        return (h + self.twin(x) if self.text == "add" else h - self.twin(x)) + self.offset


def other_forward(self, x):
    return self.linear(x) * 3


def patched_norm(norm, x):
    return nn.functional.layer_norm(x, (8,)) * 2


def swap(stage):
    stage.linear, stage.twin = stage.twin, stage.linear


def put(owner, name, value):
    return lambda stage, loss: setattr(owner(stage, loss), name, value)


def of_stage(stage, _):
    return stage


EDITS = {
    "Dropout.p": put(lambda stage, _: stage.dropout, "p", 0.7),
    "LayerNorm.eps": put(lambda stage, _: stage.norm, "eps", 0.5),
    "a number": put(of_stage, "k", 3),
    "a string": put(of_stage, "text", "subtract"),
    "a dict's value": lambda stage, _: stage.table.update(scale=4.0),
    "a list's element": lambda stage, _: stage.shifts.append(2.0),
    "a nested list": lambda stage, _: stage.table["nested"]["list"].append(7),
    "an object's field": lambda stage, _: setattr(stage.config, "scale", 3.0),
    "a field of a field": lambda stage, _: setattr(stage.config.inner, "powers", [2.0]),
    "a tensor": put(of_stage, "offset", torch.ones(8)),
    "a replaced forward": lambda stage, _: setattr(
        stage, "forward", types.MethodType(other_forward, stage)
    ),
    "a part's replaced forward": lambda stage, _: setattr(
        stage.norm, "forward", types.MethodType(patched_norm, stage.norm)
    ),
    "one part under two names": lambda stage, _: setattr(stage, "twin", stage.linear),
    "swapped parts": lambda stage, _: swap(stage),
    "a bias that goes": lambda stage, _: setattr(stage.linear, "bias", None),
    "the loss": lambda _, loss: setattr(loss, "beta", 0.1),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_attribute_that_changes_between_steps_is_read_again(edit):
    torch.manual_seed(0)
    stages, loss_fn = [nn.Linear(8, 8), Reads()], nn.SmoothL1Loss(beta=2.0)
    seen = {}
    for kind in ("module", "native"):
        seen[kind] = []
        own, own_loss = copy.deepcopy(stages), copy.deepcopy(loss_fn)
        with pipert.Pipeline(
            own, num_microbatches=2, schedule="1f1b", loss_fn=own_loss, stage_kind=kind
        ) as pipe:
            torch.manual_seed(3)
            for step in range(7):
                if step == 3:
                    edit(own[1], own_loss)
                x, y = batch(6, seed=step)
                seen[kind].append(pipe.step(x, target=y).losses)
                seen[kind] += [p.grad.clone() for p in pipe.parameters() if p.grad is not None]
                if step in (2, 6):
                    assert set(pipe.stage_kinds.values()) == {kind}
                    assert pipe.loss_kind == kind
    assert all(same_bits(a, b) for a, b in zip(seen["native"], seen["module"], strict=True))


def test_a_bias_that_comes_back_is_added():
    stage = nn.Linear(8, 8)
    bias, stage.bias = stage.bias, None
    x, _ = batch(4)
    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for value in (None, bias, None, bias):
            stage.bias = value
            for _ in range(2):
                assert same_bits(pipe(x), stage(x).detach())
            assert pipe.stage_kinds == {0: "native"}


def test_a_forward_that_is_replaced_in_its_class_is_the_one_that_runs(monkeypatch):
    class Doubles(nn.Module):
        def forward(self, x):
            return x * 2

    x, _ = batch(4)
    with pipert.Pipeline([Doubles()], num_microbatches=1, stage_kind="native") as pipe:
        for factor in (2, 3):
            for _ in range(2):
                assert same_bits(pipe(x), x * factor)
            assert pipe.stage_kinds == {0: "native"}
            monkeypatch.setattr(Doubles, "forward", lambda self, x: x * 3)


def test_attributes_of_a_callable_that_is_no_module_count_too():
    class Scales:
        def __init__(self):
            self.by = 2

        def __call__(self, x):
            return x * self.by

        def method(self, x):
            return x * self.by

    x, _ = batch(4)
    for name in ("__call__", "method"):
        scales = Scales()
        stage = scales if name == "__call__" else scales.method
        with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
            for factor in (2, 3):
                scales.by = factor
                for _ in range(2):
                    assert same_bits(pipe(x), x * factor)
                assert pipe.stage_kinds == {0: "native"}


def test_a_variable_of_a_closure_that_changes_is_read_again():
    factor, config, seen = 2, types.SimpleNamespace(shift=0), []

    def stage(x):
        seen.append(len(x))  # a log: happens in the first pass and in exports
        return x * factor + config.shift

    x, _ = batch(4)
    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for factor, config.shift in ((2, 0), (3, 0), (3, 1)):
            for _ in range(2):
                assert same_bits(pipe(x), x * factor + config.shift)
            assert pipe.stage_kinds == {0: "native"}
    assert seen


def test_an_object_that_knows_the_world_is_looked_at_and_no_further():
    stage = Reads()
    world = types.SimpleNamespace(stage=stage, module=types, many=[[0] * 1000] * 1000)
    world.itself = stage.world = world
    before = attributes(stage)
    assert attributes(stage) == before
    world.more = 1
    assert attributes(stage) != before
    assert attributes(stage).difference(before) == "world"


def test_an_attribute_that_changes_in_each_pass_is_named():
    stage = Reads().eval()
    x, _ = batch(4)
    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for k in range(40):
            stage.k = k
            assert same_bits(pipe(x), stage(x).detach())
            if k == 5:
                assert pipe.stage_kinds[0].endswith("since the last pass attributes changed: k")
        assert "attributes and modes were in more than 32 states" in pipe.stage_kinds[0]


def test_values_are_told_apart_by_kind_and_sign():
    stage = Reads()
    values = [1, 1.0, True, 0.0, -0.0, float("nan"), "1", None, (1,), [1], {1}, {1: 1}, (1.0,)]
    found = []
    for value in values:
        stage.k = value
        found.append(attributes(stage))
        stage.k = copy.deepcopy(value)
        assert attributes(stage) == found[-1]
        assert hash(attributes(stage)) == hash(found[-1])
    assert all((a == b) == (a is b) for a in found for b in found)


def test_other_objects_count_by_what_they_are():
    stage = Reads()
    stage.k = object()
    before = attributes(stage)
    assert attributes(stage) == before
    for _ in range(10):
        stage.k = object()  # never at the first one's address
        assert attributes(stage) != before


def test_containers_that_hold_themselves_or_very_much_are_looked_at():
    stage = Reads()
    stage.shifts.append(stage.shifts)
    stage.table["vocabulary"] = list(range(5000))
    before = attributes(stage)
    assert attributes(stage) == before
    stage.table["vocabulary"].append(1)
    assert attributes(stage) != before
    assert attributes(stage).difference(before) == "table"


def test_tensors_in_attributes_are_not_kept_alive():
    stage = Reads()
    stage.shifts.append(torch.ones(3))
    before = state_of(stage)
    stage.offset, stage.shifts[-1] = torch.ones(8), torch.zeros(3)
    assert state_of(stage) == before


class Puts(nn.Module):
    """Its input into a container, which between passes looks as it did before."""

    def __init__(self, container, path):
        super().__init__()
        self.seen = container
        self.path = path

    def inner(self):
        found = self.seen
        for key in self.path[:-1]:
            found = found[key]
        return found

    def forward(self, x):
        self.inner()[self.path[-1]] = x
        return x * 2


@pytest.mark.parametrize(
    ("container", "path"),
    [([None], (0,)), ({"last": {}}, ("last", "x")), (({},), (0, "x"))],
    ids=["list", "dict", "tuple"],
)
def test_what_a_forward_puts_into_an_attribute_is_put_there_in_each_pass(container, path):
    stage = Puts(container, path)
    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for seed in range(4):
            x, _ = batch(4, seed=seed)
            assert same_bits(pipe(x), x * 2)
            assert type(stage.inner()[path[-1]]) is torch.Tensor  # and none of an export
            assert same_bits(stage.inner()[path[-1]], x)
        assert pipe.stage_kinds == {0: "module: its forward sets seen"}


def test_a_list_that_a_forward_grows_keeps_growing():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = []

        def forward(self, x):
            self.calls.append(1)
            return x * len(self.calls)

    stage, x = Calls(), torch.ones(4, 2)
    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for call in range(1, 6):
            assert same_bits(pipe(x), x * call)
        assert "attributes changed: calls" in pipe.stage_kinds[0]


@pytest.mark.parametrize("generator", [random, numpy.random], ids=["Python's", "NumPy's"])
def test_numbers_from_other_generators_are_drawn_in_each_pass(generator, request):
    def draw():
        return generator.random()

    x = torch.ones(4, 2)
    found = {}
    for kind in ("module", "native"):
        generator.seed(0)
        with pipert.Pipeline([lambda x: x * draw()], num_microbatches=2, stage_kind=kind) as pipe:
            found[kind] = [pipe(x) for _ in range(4)]
            reason = pipe.stage_kinds[0]
    owner = request.node.callspec.id
    assert reason == f"module: it draws from {owner} random numbers"
    assert all(same_bits(a, b) for a, b in zip(found["native"], found["module"], strict=True))
