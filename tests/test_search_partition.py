"""search_partition: layers are moved between stages as long as the best order gets faster."""

import _thread
import itertools
import threading

import pytest
import torch
from torch import nn

import pipert
from pipert import Costs, Placement, Schedule, search_partition

pytestmark = pytest.mark.timeout(120)


def slow_stage(num_ranks, layers_a_rank, slow=1.4):
    """Costs of layers of which those of the third even stage are slower than the others."""
    first = 2 * layers_a_rank
    times = [1.0 / layers_a_rank] * (num_ranks * layers_a_rank)
    times[first : first + layers_a_rank] = [slow / layers_a_rank] * layers_a_rank
    return Costs(forward=times, input=times, weight=times, latency=0.02)


@pytest.mark.parametrize(("placement", "layers_a_rank"), [("loop", 10), ("v", 16)])
def test_most_of_what_a_slow_stage_costs_is_recovered(placement, layers_a_rank):
    ranks, microbatches, memory = 8, 24, 10
    layers = slow_stage(ranks, layers_a_rank)
    found = search_partition(
        layers,
        ranks,
        microbatches,
        memory,
        activation_size=1 / layers_a_rank,
        placements=placement,
        num_stages=ranks if placement == "loop" else 2 * ranks,
        iterations=500,
    )
    assert sum(found.balance) == ranks * layers_a_rank
    # What no partition could do better than: all ranks work equally long.
    chunks = len(found.balance) // ranks
    share = (ranks - 1 + 1.4) / ranks / chunks
    perfect = Schedule.search(
        Costs(forward=share, input=share, weight=share, latency=0.02),
        ranks,
        microbatches,
        memory,
        activation_size=1 / chunks,
        placements=placement,
        num_stages=len(found.balance),
        iterations=500,
    )
    recovered = (found.even_value - found.value) / (found.even_value - perfect.value)
    assert recovered >= 0.8


def brute_force(layers, num_ranks, num_microbatches):
    """The best value of all partitions, each searched as long as search_partition's best one."""
    num_layers = len(layers.forward)
    values = []
    for cuts in itertools.combinations(range(1, num_layers), num_ranks - 1):
        edges = [0, *cuts, num_layers]
        stages = list(itertools.pairwise(edges))
        costs = Costs(
            **{
                name: [sum(getattr(layers, name)[a:b]) for a, b in stages]
                for name in ("forward", "input", "weight")
            },
            latency=layers.latency,
        )
        values.append(Schedule.search(costs, num_ranks, num_microbatches, iterations=200).value)
    return min(values)


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_what_trying_all_partitions_finds(seed):
    numbers = [((seed + 3) * 7919 * (i + 1)) % 17 + 1 for i in range(21)]
    layers = Costs(forward=numbers[:7], input=numbers[7:14], weight=numbers[14:], latency=0.5)
    found = search_partition(layers, 3, 6, placements="loop", iterations=200)
    assert found.value == pytest.approx(brute_force(layers, 3, 6))
    assert found.bound <= found.search.bound <= found.value <= found.even_value


def test_the_balance_is_what_split_takes():
    layers = Costs(forward=[1, 1, 4, 1], input=[1, 1, 4, 1], weight=[1, 1, 4, 1])
    found = search_partition(layers, 2, 6, placements="loop", iterations=100)
    assert found.balance == [2, 2]
    assert found.costs.forward == [2, 5]
    assert found.schedule.simulate(found.costs).makespan == found.value
    assert repr(found).startswith(f"<PartitionResult: {found.value:g} with 2 stages")
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    stages = pipert.split(model, num_stages=len(found.balance), balance=found.balance)
    options = {"schedule": "1f1b", "num_microbatches": 6, "loss_fn": nn.functional.mse_loss}
    with pipert.Pipeline(stages, **options) as pipe:
        assert [len(stage) for stage in pipe.stages.values()] == [2, 2]
        assert pipe.step(torch.ones(6, 2), target=torch.ones(6, 2)).loss is not None


@pytest.mark.parametrize(
    ("sizes", "limit", "placement"),
    [
        ([5, 1, 1, 1, 1, 1, 1, 1], 5, "loop"),
        ([6, 2, 2, 2], [6, 6], "loop"),
        ([1] * 8, [1, 5, 5, 5], "loop"),
        ([1] * 8, [8, 2, 2, 2], "v"),
    ],
)
def test_cuts_that_keep_the_limit_are_found_where_even_ones_do_not(sizes, limit, placement):
    ranks = len(limit) if isinstance(limit, list) else 4
    stages = ranks if placement == "loop" else 2 * ranks
    found = search_partition(
        Costs(forward=[1] * len(sizes)),
        ranks,
        8,
        limit,
        activation_size=sizes,
        placements=placement,
        num_stages=stages,
        iterations=50,
    )
    edges = [0, *itertools.accumulate(found.balance)]
    held = [sum(sizes[a:b]) for a, b in itertools.pairwise(edges)]
    assert found.schedule.verify(memory_limit=limit, activation_size=held).ok


def test_costs_of_stages_are_sums_and_messages_those_of_the_last_layer():
    layers = Costs(
        forward=[1, 2, 3, 4],
        input=1,
        weight=[0, 1, 0, 1],
        update=[1, 1, 2, 2],
        bytes=[10, 20, 30, 40],
        activation_bytes=[1, 1, 1, 3],
        weight_share=0.5,
        bandwidth=100,
    )
    found = search_partition(layers, 1, 2, placements=Placement(1, [0, 0]), iterations=10)
    costs = found.costs
    first = found.balance[0]
    assert costs.forward == [sum([1, 2, 3, 4][:first]), sum([1, 2, 3, 4][first:])]
    assert costs.input == [first, 4 - first]
    assert costs.bytes == [10 * first, 40]
    assert costs.update == [sum([1, 1, 2, 2][:first]), sum([1, 1, 2, 2][first:])]
    assert costs.activation_bytes == [sum([1, 1, 1, 3][:first]), sum([1, 1, 1, 3][first:])]
    assert costs.weight_share == [0.5]


def test_stages_keep_the_memory_limit():
    layers = Costs(forward=[1, 1, 1, 3], input=[1, 1, 1, 3], weight=[1, 1, 1, 3])
    sizes = [4.0, 1.0, 1.0, 1.0]
    found = search_partition(
        layers, 2, 4, [5.0, 4.0], activation_size=sizes, placements="loop", iterations=100
    )
    stages = [sum(sizes[: found.balance[0]]), sum(sizes[found.balance[0] :])]
    assert found.schedule.verify(memory_limit=[5.0, 4.0], activation_size=stages).ok


def test_without_placements_one_stage_on_each_rank_and_a_v_are_tried():
    layers = Costs(forward=[1.0] * 8)
    assert len(search_partition(layers, 4, 8, 8, iterations=200).balance) in (4, 8)
    assert len(search_partition(Costs(forward=[1.0] * 7), 4, 8, iterations=50).balance) == 4


def test_the_same_request_gives_the_same_answer():
    layers = slow_stage(4, 4)
    first, second = (search_partition(layers, 4, 8, iterations=300, seed=5) for _ in range(2))
    assert (first.balance, first.value) == (second.balance, second.value)
    assert first.schedule == second.schedule


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (Costs(), {}, "layers must have a cost for each layer, got one number for all"),
        (Costs(forward=[1, 1]), {}, "num_layers must be at least 3 .*, got 2"),
        (
            Costs(forward=[1] * 4, input=[1] * 5),
            {},
            r"forward must be one number or 5 \(num_layers\), got 4",
        ),
        (
            Costs(forward=[1] * 4),
            {"num_layers": 6},
            r"forward must be one number or 6 \(num_layers\), got 4",
        ),
        (Costs(), {"num_layers": 0}, "num_layers must be at least 1, got 0"),
        (
            Costs(forward=[1] * 4),
            {"activation_size": [1, 2]},
            r"activation_size must be one number or 4 \(num_layers\), got 2",
        ),
        (Costs(forward=[1] * 4), {"memory_limit": 0.5}, "memory_limit"),
        (Costs(forward=[1] * 4), {"objective": "speed"}, "objective must be 'makespan' or 'span'"),
        (Costs(forward=[1, -1, 1, 1]), {}, "forward must be finite and at least 0, got -1"),
        (Costs(input=[]), {"num_layers": 4}, r"input must be one number or 4 .*, got 0"),
        (Costs(forward=[1] * 4), {"time_limit": -1}, "time_limit must be at least 0, got -1"),
        (Costs(forward=[1] * 4), {"iterations": -1}, "iterations must be at least 0, got -1"),
        (Costs(forward=[1] * 4), {"memory_limit": []}, "memory_limit must be .* an empty list"),
        (
            Costs(forward=[1] * 4, weight_share=[1, 0.5, 1, 1]),
            {},
            "weight_share must be one for all stages here, got 1 and 0.5",
        ),
    ],
)
def test_what_does_not_fit_is_told(layers, options, message):
    with pytest.raises(ValueError, match=message):
        search_partition(layers, 3, 4, **options)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (
            Schedule.build("1f1b", num_ranks=2, num_microbatches=3),
            "seed '1f1b': expected 4 microbatches, got 3",
        ),
        (
            Schedule.build("zb_v", num_ranks=2, num_microbatches=4),
            "seed 'zb_v': its placement is none of the placements",
        ),
        (
            Schedule.build("gpipe", num_ranks=2, num_microbatches=4),
            "seed 'gpipe': rank 0 holds activations of 3 at 0F2",
        ),
        (
            Schedule.build("pipedream", num_ranks=2, num_microbatches=4),
            "seed 'pipedream': expected F, B, I and W of whole sequences alone",
        ),
        (
            Schedule([["0F0", "0B0"], ["1F0", "1B0"]], num_microbatches=4, name="short"),
            "seed 'short': 0F1 is missing",
        ),
    ],
)
def test_a_seed_that_does_not_fit_is_refused(seed, message):
    with pytest.raises(ValueError, match=message):
        Schedule.search(Costs(), 2, 4, 2, placements="loop", num_stages=2, seeds=[seed])


def test_a_search_without_end_in_time_ends_with_its_iterations():
    layers = Costs(forward=[1.0] * 6)
    found = search_partition(layers, 3, 4, time_limit=float("inf"), iterations=50)
    assert found.value >= found.bound


def test_ctrl_c_ends_the_search():
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    try:
        # So little memory that no order comes near the bound: it takes as long as it may.
        with pytest.raises(KeyboardInterrupt):
            search_partition(slow_stage(8, 16), 8, 24, 8, activation_size=1 / 16, time_limit=100)
    finally:
        timer.cancel()
