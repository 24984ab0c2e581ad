"""balance=: stages are cut so that the longest rank is as short as can be; costs go with them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pipert
from pipert import _C, Costs, Placement, Schedule
from pipert.balancing.stage_placement import StagePlacement, microbatches_held


def all_cuts(num_layers, num_stages):
    for inner in itertools.combinations(range(1, num_layers), num_stages - 1):
        yield [b - a for a, b in itertools.pairwise([0, *inner, num_layers])]


def loads(values, cuts, placement):
    """By rank, the sum of what its stages' layers take."""
    edges = [0, *itertools.accumulate(cuts)]
    sums = [0.0] * placement.num_ranks
    for stage, (begin, end) in enumerate(itertools.pairwise(edges)):
        sums[placement.rank_of(stage)] += sum(values[begin:end])
    return sums


PLACEMENTS = [
    Placement.loop(1, 1),
    Placement.loop(3, 3),
    Placement.v_shaped(2, 4),
    Placement.v_shaped(3, 6),
    Placement.loop(2, 4),
]


@settings(deadline=None)
@given(
    st.sampled_from(PLACEMENTS).flatmap(
        lambda placement: st.tuples(
            st.just(placement),
            st.lists(
                st.tuples(st.integers(0, 20), st.integers(0, 9)),
                min_size=placement.num_stages,
                max_size=9,
            ),
            st.one_of(st.none(), st.integers(0, 30)),
        )
    )
)
def test_cuts_are_as_good_as_any(case):
    placement, layers, limit = case
    work, held = [w for w, _ in layers], [h for _, h in layers]
    values = [
        max(loads(work, cuts, placement))
        for cuts in all_cuts(len(layers), placement.num_stages)
        if limit is None or max(loads(held, cuts, placement)) <= limit
    ]
    is_exact = placement != PLACEMENTS[-1]
    if not values:
        with pytest.raises(ValueError, match=r"cuts that keep the limit|no cuts keep the limit"):
            _C.balanced_cuts(work, placement, held=held, limit=limit)
        return
    try:
        found = _C.balanced_cuts(work, placement, held=held, limit=limit)
    except ValueError:
        assert not is_exact
        return
    assert found.work == pytest.approx(loads(work, found.cuts, placement))
    assert found.held == pytest.approx(loads(held, found.cuts, placement))
    assert found.longest == pytest.approx(max(found.work))
    assert found.bound <= min(values) + 1e-6
    if is_exact:
        assert found.longest == pytest.approx(min(values))
        assert found.gap == 0


def test_a_limit_that_no_cuts_keep_is_refused_with_the_least_that_would_do():
    with pytest.raises(ValueError, match=r"expected at least 4 .*, got 3"):
        _C.balanced_cuts([1, 1, 4], Placement.loop(2, 2), limit=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"work": [1.0, -1.0]}, "once must be finite and at least 0, got -1"),
        ({"work": [1.0]}, "expected at least 2 layers, one for each stage, got 1"),
        ({"held": [1.0]}, "held must have 2 layers"),
        ({"limit": [1.0, 1.0, 1.0]}, "limit must be one number or 2"),
        ({"work": _C.Measure([1, 1], [1, 1], [1])}, "times must have 2 entries"),
    ],
)
def test_numbers_that_fit_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _C.balanced_cuts(**{"work": [1.0, 1.0], "placement": Placement.loop(2, 2), **options})


# --- what a stage holds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "held"),
    [
        ("gpipe", {}, [8, 8, 8, 8]),
        ("1f1b", {}, [4, 3, 2, 1]),
        ("zb_h1", {}, [4, 4, 4, 4]),
    ],
)
def test_microbatches_that_a_stage_holds_are_counted_in_the_schedule(name, options, held):
    schedule = Schedule.build(name, num_ranks=4, num_microbatches=8, **options)
    counted = microbatches_held(schedule)
    assert len(counted) == 4
    if name != "zb_h1":
        assert counted == held
    assert [counted[s] for s in range(4)] == list(schedule.simulate(Costs()).peak_memory)


def test_a_placement_without_a_schedule_holds_what_its_usual_schedule_does():
    assert StagePlacement(None, 3).microbatches_held() == [3, 2, 1]
    looped = Placement.loop(2, 4)
    schedule = Schedule.build("interleaved_1f1b", num_ranks=2, num_microbatches=8, num_stages=4)
    assert StagePlacement(looped, None).microbatches_held() == microbatches_held(schedule)
    assert StagePlacement([0, 0, 1], None).microbatches_held() == [3, 2, 1]


# --- split ----------------------------------------------------------------------------------------


class Repeated(nn.Module):
    """A layer that takes `times` as long as one of 1."""

    def __init__(self, times, width=192):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width)
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            x = x @ self.weight
        return x


def sizes(stages):
    return [len(stage) for stage in stages]


def test_time_is_measured_layer_by_layer_and_a_long_head_gets_fewer_layers():
    model = nn.Sequential(*(Repeated(1) for _ in range(8)), Repeated(24))
    stages = pipert.split(model, 2, example_args=(torch.randn(256, 192),), balance="time")
    assert sizes(stages) == [8, 1]
    costs = stages.costs
    assert len(costs.forward) == len(costs.input) == len(costs.weight) == 2
    assert costs.forward[1] > costs.forward[0] > 0
    assert costs.bytes == [256 * 192 * 4] * 2
    assert not costs.is_estimated


def test_costs_go_to_simulate_and_search():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    stages = pipert.split(model, 2, example_args=(torch.randn(4, 8),), balance="time")
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=4)
    assert schedule.simulate(stages.costs).makespan > sum(stages.costs.forward)
    found = Schedule.search(stages.costs, 2, 4, iterations=10)
    assert found.schedule.num_stages == 2
    assert pipert.split(model, 2).costs is None


def test_layers_on_meta_are_estimated():
    with torch.device("meta"):
        model = nn.Sequential(*(Repeated(1) for _ in range(6)), Repeated(6))
    stages = pipert.split(model, 2, example_args=(torch.randn(4, 192),), balance="time")
    assert sizes(stages) == [6, 1]
    assert stages.costs.is_estimated
    assert stages.costs.forward[0] == pytest.approx(stages.costs.forward[1])
    # Each multiplication makes one result, and two gradients.
    assert stages.costs.weight[1] > 0
    assert "time (estimated)" in str(stages)


def test_profiling_leaves_random_numbers_buffers_and_gradients_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    pipert.split(model, 2, example_args=(torch.randn(3, 4),), balance="time")
    torch.random.set_rng_state(before)
    model_state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(3, 4)
    state = torch.random.get_rng_state()
    pipert.split(model, 2, example_args=(x,), balance="time")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(model.state_dict()[name], v) for name, v in model_state.items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_that_work_in_place_are_measured_and_leave_the_example_alone(device):
    with torch.device(device):
        model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True))
    x = torch.randn(4, 8)
    before = x.clone()
    costs = pipert.split(model, at=["1", "2"], example_args=(x,), balance="time").costs
    assert torch.equal(x, before)
    assert all(seconds > 0 for seconds in costs.forward)
    # The first saves nothing, its input needs no gradient; the last what it returns.
    assert costs.activation_bytes == [0, 4 * 8 * 4, 4 * 8 * 4]


def test_memory_counts_parameters_optimizer_and_activations_by_microbatches_held():
    model = nn.Sequential(*(nn.Sigmoid() for _ in range(6)))
    x = torch.randn(2, 8, requires_grad=True)
    stages = pipert.split(model, 2, example_args=(x,), balance="memory")
    # Each layer keeps one output; the first stage holds two microbatches, the second one.
    assert sizes(stages) == [2, 4]
    assert stages.costs.activation_bytes == [2 * 64, 4 * 64]
    linear = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    stages = pipert.split(linear, 2, example_args=(torch.randn(1, 64),), balance="memory")
    assert sizes(stages) == [2, 2]


def test_what_two_layers_save_counts_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid())
    x = torch.randn(2, 8)
    costs = pipert.split(model, at=["1", "2", "3"], example_args=(x,), balance="time").costs
    # The first saves its input; what ReLU returns is saved by itself, and by the next one too.
    assert costs.activation_bytes == [64, 64, 0, 64]


def test_a_memory_limit_moves_layers_to_where_there_is_room():
    model = nn.Sequential(*(nn.Sigmoid() for _ in range(6)))
    x = torch.randn(2, 8, requires_grad=True)
    options = {"example_args": (x,), "balance": "uniform"}
    assert sizes(pipert.split(model, 2, memory_limit=6 * 64, **options)) == [3, 3]
    assert sizes(pipert.split(model, 2, memory_limit=5 * 64, **options)) == [2, 4]
    assert sizes(pipert.split(model, 2, memory_limit=[128, 320], **options)) == [1, 5]
    with pytest.raises(
        ValueError, match=r"no cuts keep the limit .* at least 256 bytes .*, got 192"
    ):
        pipert.split(model, 2, memory_limit=3 * 64, **options)
    # Under gpipe both stages hold all four microbatches.
    gpipe = Schedule.build("gpipe", num_ranks=2, num_microbatches=4)
    stages = pipert.split(model, placement=gpipe, memory_limit=12 * 64, **options)
    assert sizes(stages) == [3, 3]
    with pytest.raises(ValueError, match="no cuts keep the limit"):
        pipert.split(model, placement=gpipe, memory_limit=11 * 64, **options)


def test_a_function_may_say_what_a_layer_counts():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    seen = []

    def count(path, layer):
        seen.append((path, layer))
        return 3 if path == "3" else 1

    assert sizes(pipert.split(model, 2, balance=count)) == [3, 1]
    assert seen == list(model.named_children())
    with pytest.raises(ValueError, match="for layer 0 got 'much'"):
        pipert.split(model, 2, balance=lambda path, layer: "much")


def test_stages_of_a_v_are_balanced_by_rank():
    weights = {"0": 5, "1": 1, "2": 1, "3": 1, "4": 1, "5": 1}
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in weights))
    stages = pipert.split(model, 4, balance=lambda path, _: weights[path], placement="v")
    assert sizes(stages) == [1, 2, 2, 1]  # the rank with the first stage has the last one too
    with pytest.raises(ValueError, match="two stages on each rank: expected an even number, got 3"):
        pipert.split(model, 3, placement="v")
    assert len(pipert.split(model, placement=[0, 1, 1, 0])) == 4
    with pytest.raises(ValueError, match="placement is of 4 stages, got num_stages=2"):
        pipert.split(model, 2, placement=Placement.v_shaped(2, 4))
    with pytest.raises(ValueError, match="placement must be a Placement"):
        pipert.split(model, 2, placement="w")


@pytest.mark.parametrize("name", ["zb_v", "interleaved_1f1b", "looped_bfs"])
@pytest.mark.parametrize("seed", range(3))
def test_where_ranks_have_several_stages_cuts_are_those_whose_step_ends_soonest(name, seed):
    schedule = Schedule.build(name, num_ranks=3, num_microbatches=6, num_stages=6)
    numbers = [1 + (seed + 3) * 7919 * (i + 1) % 17 for i in range(10)] + [30]
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in numbers))
    stages = pipert.split(model, balance=lambda path, _: numbers[int(path)], placement=schedule)

    def makespan(cuts):
        edges = itertools.pairwise([0, *itertools.accumulate(cuts)])
        third = [sum(numbers[a:b]) / 3 for a, b in edges]
        return schedule.simulate(Costs(forward=third, input=third, weight=third)).makespan

    values = sorted(makespan(cuts) for cuts in all_cuts(len(numbers), 6))
    assert makespan(sizes(stages)) <= values[0] * 1.05
    by_rank = _C.balanced_cuts(numbers, schedule.placement).cuts
    assert makespan(sizes(stages)) <= makespan(by_rank)


def test_a_schedule_needs_costs_and_its_own_placement():
    schedule = Schedule.build("zb_v", num_ranks=2, num_microbatches=4)
    options = {"work": [1] * 4, "schedule": schedule}
    with pytest.raises(ValueError, match="expected them, got None"):
        _C.balanced_cuts(placement=schedule.placement, **options)
    with pytest.raises(ValueError, match="schedule must have the placement that is given"):
        _C.balanced_cuts(placement=Placement.loop(2, 4), costs=Costs(), **options)
    with pytest.raises(ValueError, match=r"forward must be one number or 4 \(num_layers\), got 2"):
        _C.balanced_cuts(placement=schedule.placement, costs=Costs(forward=[1, 1]), **options)


class Skipping(nn.Module):
    """Layers that a trace alone can cut: the last one takes what the first returned, too."""

    def __init__(self, long=1):
        super().__init__()
        self.layers = nn.ModuleList(Repeated(1) for _ in range(6))
        self.head = Repeated(long)

    def forward(self, x):
        first = y = self.layers[0](x)
        for layer in self.layers[1:]:
            y = layer(y)
        return self.head(y + first)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_traced_layers_are_measured_with_the_arguments_that_they_have(device):
    with torch.device(device):
        model = Skipping(long=18 if device == "cpu" else 6)
    x = torch.randn(256, 192)
    stages = pipert.split(model, 2, example_args=(x,), balance="time", by="trace")
    assert [spec.layers[-1] for spec in stages.specs] == ["layers.5", "head"]
    assert len(stages.costs.forward) == 2
    assert stages.costs.bytes == [256 * 192 * 4, 0]
    assert stages.costs.is_estimated == (device == "meta")


def test_traced_stages_keep_a_memory_limit():
    x = torch.randn(256, 192, requires_grad=True)
    options = {"example_args": (x,), "by": "trace", "balance": "uniform"}
    assert len(pipert.split(Skipping(), 2, memory_limit=10**8, **options)) == 2
    with pytest.raises(ValueError, match="no cuts keep the limit"):
        pipert.split(Skipping(), 2, memory_limit=10**5, **options)


def test_given_numbers_of_layers_say_how_many_stages_there_are():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    assert sizes(pipert.split(model, balance=[1, 3])) == [1, 3]


def test_a_layer_that_can_not_run_alone_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="layer 1 can't be run alone") as error:
        pipert.split(model, 2, example_args=(torch.randn(1, 2),), balance="time")
    assert isinstance(error.value.__cause__, RuntimeError)


def test_cuts_by_name_may_be_measured_too():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    x = torch.randn(4, 8)
    stages = pipert.split(model, at=["1"], example_args=(x,), balance="time")
    assert sizes(stages) == [1, 3]
    assert len(stages.costs.forward) == 2
