"""What a native stage reads of its modules' attributes is what it would read as a module."""

import copy
import functools
import random
import types
from collections import deque

import numpy
import pytest
import torch
from native_pair import run_both
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
        self.window = deque([1.0], maxlen=2)
        self.offset = torch.zeros(8)
        self.config = types.SimpleNamespace(scale=1.0, inner=types.SimpleNamespace(powers=[1.0]))

    def forward(self, x):
        h = self.dropout(self.norm(self.linear(x))) * self.k * self.table["scale"]
        h = h * self.config.scale * self.config.inner.powers[0]
        for shift in (*self.shifts, *self.window):
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
    "a deque's element": lambda stage, _: stage.window.append(3.0),
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
            assert k == 0 or pipe.stage_kinds[0].endswith(
                "since the last pass attributes changed: k"
            )


def test_values_are_told_apart_by_kind_and_sign():
    stage = Reads()
    values = [1, 1.0, True, 0.0, -0.0, float("nan"), "1", None, (1,), [1], {1}, {1: 1}, (1.0,)]
    values += [complex(0.0, 0.0), complex(0.0, -0.0), complex("nan"), deque([1]), frozenset([1])]
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
    [([None], (0,)), ({"last": {}}, ("last", "x")), (({},), (0, "x")), (deque([None]), (0,))],
    ids=["list", "dict", "tuple", "deque"],
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


@pytest.mark.parametrize("container", [list, deque])
def test_a_list_that_a_forward_grows_keeps_growing(container):
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = container()

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


# --- tensors ------------------------------------------------------------------------------------


class Looks(nn.Module):
    """At a tensor that is an attribute."""

    def __init__(self, look, tensor):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.look, self.tensor = look, tensor

    def forward(self, x):
        return self.linear(x) * self.look(self.tensor)


def first(tensors):
    return tensors[0].shape[0]


PAIR = torch.tensor([2.0, 3.0])
LOOKS = {
    "shape": (lambda t: t.shape[0], PAIR, torch.ones(5)),
    "len": (len, PAIR, torch.ones(5)),
    "numel": (torch.Tensor.numel, PAIR, torch.ones(2, 2)),
    "dtype": (lambda t: 2 if t.dtype == torch.float32 else 3, PAIR, PAIR.double()),
    "stride": (lambda t: t.stride(0), torch.ones(2, 2), torch.ones(2, 2).t()),
    "requires_grad": (lambda t: 2 if t.requires_grad else 3, PAIR, PAIR.clone().requires_grad_()),
    "type": (lambda t: 2 if isinstance(t, nn.Parameter) else 3, PAIR, nn.Parameter(PAIR)),
    "layout": (lambda t: 2 if t.is_sparse else 3, torch.ones(2, 2), torch.eye(2).to_sparse()),
    "in a list": (first, [PAIR], [torch.ones(5)]),
    "in a deque": (first, deque([PAIR]), deque([torch.ones(5)])),
}


@pytest.mark.parametrize(("look", "tensor", "other"), LOOKS.values(), ids=LOOKS.keys())
def test_what_python_reads_of_a_tensor_is_read_again(look, tensor, other):
    def make():
        torch.manual_seed(0)
        stage = Looks(look, None)
        stage.__dict__["tensor"] = tensor
        return [stage, nn.Linear(3, 3)]

    def steps(pipe, stages):
        for step in range(6):
            if step == 3:
                stages[0].__dict__["tensor"] = other
            yield pipe.step(torch.ones(4, 3), target=torch.zeros(4, 3)).losses

    run_both(make, steps, {0: "native", 1: "native"}, loss_fn=nn.functional.mse_loss)


VALUES = {
    "tolist": (lambda t: t.tolist()[0], "native"),
    "tolist of one": (lambda t: t[0].tolist(), "native"),
    "item": (lambda t: t[0].item(), "native"),
    "data_ptr": (lambda t: t.data_ptr() % 2 + 1, "module: torch.export failed"),
}


@pytest.mark.parametrize(("look", "kind"), VALUES.values(), ids=VALUES.keys())
def test_values_of_a_tensor_that_is_an_attribute_are_read_again(look, kind):
    def make():
        torch.manual_seed(0)
        return [Looks(look, PAIR)]

    def steps(pipe, stages):
        for step in range(6):
            if step == 3:
                stages[0].tensor = torch.tensor([5.0, 3.0])
            yield pipe(torch.ones(4, 3))

    run_both(make, steps, kind)


def test_a_scalar_that_is_an_attribute_is_read_again():
    def steps(pipe, stages):
        for step in range(6):
            if step == 3:
                stages[0].tensor = torch.tensor(5.0)
            yield pipe(torch.ones(4, 3))

    def make():
        torch.manual_seed(0)
        return [Looks(torch.Tensor.item, torch.tensor(2.0))]

    run_both(make, steps, {0: "native"})


class Two(nn.Module):
    """Tensors under two names each."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.a = torch.full((3,), 2.0)
        self.b = self.a
        self.register_buffer("c", torch.full((3,), 2.0))
        self.register_buffer("d", self.c)
        self.all = [self.a]

    def forward(self, x):
        h = self.two(self.one(x)) * self.a + self.b + self.c * self.d
        return h * (2.0 if self.all[0] is self.a else 3.0)


ONES = {
    "parameters": lambda stage: setattr(stage.two, "weight", nn.Parameter(torch.ones(3, 3))),
    "tensors": lambda stage: setattr(stage, "b", torch.ones(3)),
    "the first": lambda stage: setattr(stage, "a", torch.ones(3)),
    "buffers": lambda stage: setattr(stage, "d", torch.ones(3)),
    "in a list": lambda stage: stage.all.__setitem__(0, torch.full((3,), 2.0)),
}


@pytest.mark.parametrize("untie", ONES.values(), ids=ONES.keys())
def test_tensors_that_were_one_are_two_once_they_are_untied(untie):
    def make():
        torch.manual_seed(0)
        return [Two()]

    def steps(pipe, stages):
        for step in range(9):
            if step == 3:
                untie(stages[0])
            if step == 6:  # and one again
                stages[0].two.weight = stages[0].one.weight
                stages[0].b = stages[0].a
                stages[0].d = stages[0].c
                stages[0].all[0] = stages[0].a
            yield pipe.step(torch.ones(4, 3), target=torch.zeros(4, 3)).losses
            yield from [p.grad for p in pipe.parameters()]
            for parameter in pipe.parameters():
                parameter.grad = None

    run_both(make, steps, {0: "native"}, loss_fn=nn.functional.mse_loss)


# --- modules behind functions -------------------------------------------------------------------


class Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.by = 2

    def encode(self, x):
        return self.dropout(x) * self.by


class Wraps:
    def __init__(self, drops):
        self.drops = drops

    def __call__(self, x):
        return self.drops.encode(x)


CALLS = {
    "method": lambda drops: drops.encode,
    "closure": lambda drops: lambda x: drops.encode(x),
    "closure of a closure": lambda drops: (lambda inner: lambda x: inner(x))(drops.encode),
    "partial": lambda drops: functools.partial(drops.encode),
    "argument of a partial": lambda drops: functools.partial(Drops.encode, drops),
    "object": Wraps,
    "method of an object": lambda drops: Wraps(drops).__call__,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_modes_and_attributes_of_modules_behind_a_function_count(call):
    drops = Drops()

    def make():
        drops.train()
        drops.by = 2
        return [call(drops)]

    def steps(pipe, _):
        torch.manual_seed(0)
        for step in range(9):
            if step == 3:
                drops.dropout.eval()
            if step == 6:
                drops.by = 3
            yield pipe(torch.ones(4, 3))

    run_both(make, steps, {0: "native"})


def test_hooks_of_a_module_behind_a_function_are_called():
    drops = Drops().eval()
    calls = []
    drops.dropout.register_forward_hook(lambda *_: calls.append(1))
    with pipert.Pipeline([drops.encode], num_microbatches=2, stage_kind="native") as pipe:
        for _ in range(3):
            pipe(torch.ones(4, 3))
        assert pipe.stage_kinds == {0: "module: Dropout has hooks"}
    assert len(calls) == 6


def test_what_a_function_sets_in_a_module_behind_it_is_set_in_each_pass():
    drops = Drops().eval()

    def stage(x):
        drops.seen = x
        return drops.encode(x)

    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for seed in range(4):
            x, _ = batch(4, seed=seed)
            pipe(x)
            assert same_bits(drops.seen, x)
        assert "its forward sets seen" in pipe.stage_kinds[0]


# --- many states --------------------------------------------------------------------------------


def test_native_comes_back_once_an_attribute_stays():
    stage = Reads().eval()
    x, _ = batch(4)
    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for k in [*range(80), 99, 99, 99]:
            stage.k = k
            assert same_bits(pipe(x), stage(x).detach())
        assert pipe.stage_kinds == {0: "native"}


def test_a_state_that_is_often_used_keeps_its_graph(monkeypatch):
    exports = []
    export = pipert.native.export
    monkeypatch.setattr(pipert.native, "export", lambda *a: exports.append(a) or export(*a))
    stage = Reads().eval()
    x, _ = batch(4)
    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for k in range(60):
            for value in (-1, -1, k):
                stage.k = value
                assert same_bits(pipe(x), stage(x).detach())
                assert value == k or k == 0 or pipe.stage_kinds == {0: "native"}
    assert len(exports) == 1


def test_states_that_last_for_two_passes_are_not_exported_without_end(monkeypatch):
    exports = []
    export = pipert.native.export
    monkeypatch.setattr(pipert.native, "export", lambda *a: exports.append(a) or export(*a))

    class Scales(nn.Module):
        k = 0

        def forward(self, x):
            return x * self.k

    stage, x = Scales(), torch.ones(2, 2)
    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for k in range(40):
            stage.k = k
            for _ in range(2):
                assert pipe(x)[0, 0] == k
        assert len(exports) == 32
        stage.k = 100
        for _ in range(33):
            assert pipe(x)[0, 0] == 100
        assert pipe.stage_kinds == {0: "native"}
    assert len(exports) == 33
