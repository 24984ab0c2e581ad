"""Stages that hand values past others, beside a Pipeline's options: the same bits, or why not."""

import copy

import pytest
import torch
from plain_loop import batch, same_bits
from rounded_edges import RoundedEdge
from run_in_turn import run_in_turn
from test_skip_edges import assert_equals_plain_loop, pipeline
from test_split_trace import UNet
from torch import nn
from wired_stages import random_stages, u_net, unpartitioned, wired_loop

import pipert
from pipert import _C, Schedule
from pipert._C import rehearse
from pipert.local.routes import routes_of

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss
MICROBATCHES = 4


# --- messages --------------------------------------------------------------------------------


def messages_sent(trace):
    """By (kind, from rank, to rank): how many in a pass."""
    counts = {}
    for event in trace.events:
        if event.kind == "send":
            key = (event.message.kind, event.message.source, event.message.destination)
            counts[key] = counts.get(key, 0) + 1
    return counts


def ranks_that_read(stages, placement):
    """By kind: (stage, rank) where the rank reads what the stage makes, on another rank.

    Along the chain, and values: forward on all ranks that read them, back from reader to reader.
    """
    chain = [(stage, stage + 1) for stage in range(len(stages) - 1)]
    forward, back = set(chain), {(after, before) for before, after in chain}
    for value in stages.values:
        forward |= {(value.maker, reader) for reader in value.readers}
        if value.differentiable:
            back |= set(zip(value.readers, (value.maker, *value.readers), strict=False))
    return {
        kind: {
            (stage, placement.rank_of(reader))
            for stage, reader in pairs
            if placement.rank_of(stage) != placement.rank_of(reader)
        }
        for kind, pairs in (("activation", forward), ("gradient", back))
    }


@pytest.mark.parametrize(("schedule", "num_stages"), [("1f1b", 3), ("interleaved_1f1b", 6)])
@pytest.mark.parametrize("seed", range(8))
def test_a_rank_is_sent_what_its_stages_read_once(schedule, num_stages, seed):
    stages = random_stages(seed, num_stages)
    x, y = batch(12)
    with pipeline(stages, 6, schedule=schedule, num_ranks=3) as pipe:
        pipe.step(x=x, target=y)
        placement = pipe.schedule.placement
        expected = {}
        for kind, pairs in ranks_that_read(stages, placement).items():
            for stage, rank in pairs:
                key = (kind, placement.rank_of(stage), rank)
                expected[key] = expected.get(key, 0) + 6
        assert messages_sent(pipe.trace()) == expected


def test_values_between_stages_of_one_rank_cost_no_message():
    x, y = batch(8)
    with pipeline(u_net(), schedule="looped_bfs", num_ranks=1) as pipe:
        pipe.step(x=x, target=y)
        assert messages_sent(pipe.trace()) == {}


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize(("name", "ranks", "num_stages"), [("1f1b", 3, 3), ("zb_v", 2, 4)])
def test_activations_that_wait_on_the_host(name, ranks, num_stages, ahead):
    schedule = Schedule.build(
        name, num_ranks=ranks, num_stages=num_stages, num_microbatches=MICROBATCHES
    ).with_offload(ahead=ahead)
    for seed in range(3):
        stages = random_stages(seed, num_stages)
        reference = unpartitioned(stages)
        with pipeline(stages, schedule=schedule) as pipe:
            assert_equals_plain_loop(pipe, reference, *batch(9))


@pytest.mark.parametrize(("schedule", "ranks"), [("dualpipe_v", 2), ("dualpipe", 4)])
def test_pairs_that_a_function_runs(schedule, ranks):
    def backward_first(forward, backward):
        backward()
        forward()

    for seed in range(3):
        stages = random_stages(seed, 4)
        reference = unpartitioned(stages)
        with pipeline(
            stages, 8, schedule=schedule, num_ranks=ranks, overlap_fn=backward_first
        ) as pipe:
            assert_equals_plain_loop(pipe, reference, *batch(17))


def test_stages_that_cannot_be_recorded_run_and_say_why():
    stages = u_net()
    reference = unpartitioned(stages)
    with pipeline(stages, stage_kind="captured") as pipe:
        assert_equals_plain_loop(pipe, reference, *batch(9))
        assert set(pipe.stage_kinds.values()) == {
            "module: only a CUDA device can record, the ranks are on cpu"
        }


def test_gradients_in_main_grads():
    stages = u_net()
    reference = unpartitioned(stages)
    x, y = batch(8)
    with pipeline(stages, main_grads=True, schedule="zb_h1") as pipe:
        pipe.step(x=x, target=y)
        wired_loop(reference, pipe.schedule, x, y)
        expected = dict(reference.named_parameters())
        for name, parameter in pipe.named_parameters():
            assert same_bits(parameter.main_grad, expected[name].grad), name
            assert parameter.grad is None


def test_memory_is_measured():
    stages = u_net()
    reference = unpartitioned(stages)
    with pipeline(stages, measure_memory=True) as pipe:
        assert_equals_plain_loop(pipe, reference, *batch(9))
        x, y = batch(9)
        pipe.step(x=x, target=y)
        assert [rank.rank for rank in pipe.report().ranks] == [0, 1, 2]


@pytest.mark.parametrize("compression", ["bfloat16", "fp8_block"])
def test_values_that_are_rounded_on_the_way(compression):
    """Each edge rounds what passes it, a value past a stage too, there and back."""
    stages = u_net()
    reference = unpartitioned(stages).stages
    edge = RoundedEdge(compression)
    x, y = batch(8)
    losses = []
    for piece, target in zip(x.chunk(4), y.chunk(4), strict=True):
        loss = mse(run_in_turn(reference, (), {"x": piece}, hand_over=edge), target)
        (loss / 4).backward()
        losses.append(loss.detach())
    with pipeline(stages, compression=compression) as pipe:
        assert same_bits(pipe.step(x=x, target=y).losses, torch.stack(losses))
        for index, stage in pipe.stages.items():
            pairs = zip(stage.parameters(), reference[index].parameters(), strict=True)
            assert all(same_bits(ours.grad, theirs.grad) for ours, theirs in pairs)


def test_another_schedule_between_steps():
    stages = random_stages(3, 3)
    reference = unpartitioned(stages)
    with pipeline(stages, schedule="gpipe") as pipe:
        assert_equals_plain_loop(pipe, reference, *batch(9))
        for schedule in ("zb_h1", "1f1b"):
            pipe.reschedule(schedule)
            assert_equals_plain_loop(pipe, reference, *batch(9))


def test_devices_of_several_names():
    """Two names of one device: values are moved from the one to the other."""
    for seed in range(3):
        stages = random_stages(seed, 3)
        reference = unpartitioned(stages)
        with pipeline(stages, devices=["cpu", "cpu:0", "cpu"]) as pipe:
            assert_equals_plain_loop(pipe, reference, *batch(9))


@pytest.mark.parametrize(("schedule", "ranks"), [("dualpipe", 2), ("chimera", 2)])
def test_two_copies_of_traced_stages(schedule, ranks):
    torch.manual_seed(0)
    model = UNet()
    reference = copy.deepcopy(model)
    x, y = (value[:, :6] for value in batch(16))
    stages = pipert.split(model, ranks, example_args=(x[:2],), by="trace")
    with pipeline(stages, 8, schedule=schedule, num_ranks=ranks) as pipe:
        for _ in range(2):
            for of in (model, reference):
                of.zero_grad()
            losses = pipe.step(x, target=y).losses
            for piece, target, found in zip(x.chunk(8), y.chunk(8), losses, strict=True):
                loss = mse(reference(piece), target)
                (loss / 8).backward()
                assert same_bits(found, loss.detach())
            expected = dict(reference.named_parameters())
            for name, parameter in pipe.named_parameters():
                torch.testing.assert_close(parameter.grad, expected[name].grad)
            assert same_bits(pipe.evaluate(x, target=y).losses, losses)


# --- rehearsal -------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [{}, {"receive_slots": 1}, {"receive_slots": 4, "send_slots": 1}])
@pytest.mark.parametrize(
    ("name", "num_stages"), [("gpipe", 4), ("zb_h1", 4), ("interleaved_1f1b", 8), ("zb_v", 8)]
)
def test_programs_with_skip_edges_complete_in_rehearsal(name, num_stages, slots):
    schedule = Schedule.build(name, num_ranks=4, num_stages=num_stages, num_microbatches=8)
    for seed in range(5):
        graph = routes_of(random_stages(seed, num_stages)).stage_graph()
        assert not graph.is_chain
        for training, order in ((True, schedule), (False, schedule.forward_only())):
            ended = rehearse(
                list(_C.Lowering(order, stage_graph=graph, **slots)),
                schedule.placement,
                training=training,
                limit_ms=10_000,
            )
            assert ended.ending == "completed", ended.message
            assert ended.actions == [list(actions) for actions in order.actions]
