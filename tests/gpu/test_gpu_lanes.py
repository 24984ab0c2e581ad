"""Lanes of a GPU: marks order them whatever takes how long, and its own clock says when they ran.

Stages sleep on the device for random times and fill memory that they free at once with NaN: a mark
that is missing, or memory that is used again too early, shows in the bits.
"""

import gc
import itertools
import os
import random
import subprocess
import sys
import textwrap

import pytest
import torch
from plain_loop import batch, mlp, plain_loop, same_bits, scheduled_loop, twins
from torch import nn

import pipert
from pipert import _C

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(100)]
mse = nn.functional.mse_loss
WIDTH = 64
PARTS = ("compute_s", "transfer_s", "upstream_s", "downstream_s", "end_s", "host_s")


def poison(like):
    """Whoever is given this memory next finds no zeros in it."""
    torch.full_like(like, float("nan"))


class Late(nn.Module):
    """Its input, after a while; the gradient likewise."""

    def __init__(self, seed, most_cycles=100_000):
        super().__init__()
        self.random = random.Random(seed)
        self.most_cycles = most_cycles

    def wait(self, like):
        poison(like)
        torch.cuda._sleep(self.random.randrange(self.most_cycles))

    def forward(self, x):
        self.wait(x)
        if x.requires_grad:
            x.register_hook(self.wait)
        return x.view_as(x)


def late_pipe(num_stages, schedule="1f1b", num_microbatches=6, **options):
    """A pipeline of late stages on one GPU, and a model with the same weights in no pipeline."""
    model, reference = twins(mlp, num_stages, width=WIDTH)
    reference.cuda()
    stages = [
        nn.Sequential(Late(index), *stage, Late(100 + index))
        for index, stage in enumerate(pipert.split(model, num_stages))
    ]
    num_ranks = options.pop("num_ranks", num_stages)
    pipe = pipert.Pipeline(
        stages,
        schedule=schedule,
        num_ranks=num_ranks,
        devices=["cuda:0"] * num_ranks,
        num_microbatches=num_microbatches,
        loss_fn=mse,
        **options,
    )
    return pipe, reference


def expected_of(reference, pipe, x, y):
    """Losses and gradients of one step from nothing."""
    reference.zero_grad()
    stages = pipert.split(reference, len(pipe.stages) // pipe.schedule.placement.num_copies)
    losses = scheduled_loop(reference, stages, pipe.schedule, x, y)
    return losses, [p.grad.clone() for p in reference.parameters()]


def run_late(pipe, reference, num_passes):
    """Passes one behind the other, on batches in turn, without a look at any result on the way."""
    batches = [[t.cuda() for t in batch(24, width=WIDTH, seed=seed)] for seed in range(3)]
    expected = [expected_of(reference, pipe, *each) for each in batches]
    got = []
    with pipe:
        for step in range(num_passes):
            x, y = batches[step % 3]
            poison(x)
            losses = pipe.step(x.clone(), target=y.clone()).losses
            got.append((losses, [p.grad for p in pipe.parameters()]))
            for parameter in pipe.parameters():
                parameter.grad = None
    for step, (losses, gradients) in enumerate(got):
        wanted_losses, wanted = expected[step % 3]
        assert same_bits(losses, wanted_losses), f"losses of pass {step}"
        for index, (one, other) in enumerate(zip(gradients, wanted, strict=True)):
            assert same_bits(one, other), f"gradient {index} of pass {step}"


def test_this_build_has_lanes_of_its_own():
    assert _C.has_cuda_lanes()


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_random_delays_on_the_device_change_no_bit(schedule, num_ranks):
    run_late(*late_pipe(num_ranks, schedule, 2 * num_ranks), num_passes=200)


@pytest.mark.parametrize(
    ("schedule", "num_stages", "options"),
    [
        ("interleaved_1f1b", 4, {"num_ranks": 2}),
        ("zb_v", 4, {"num_ranks": 2}),
        ("1f1b", 2, {"recompute": "all"}),
        ("zb_h1", 2, {"measure_memory": True}),
        ("1f1b", 2, {"device_times": True}),
    ],
)
def test_so_it_is_with_several_stages_recomputation_and_measurements(schedule, num_stages, options):
    run_late(*late_pipe(num_stages, schedule, **options), num_passes=30)


@pytest.mark.parametrize("ahead", [0, 1])
def test_so_it_is_with_activations_that_go_to_the_host_and_back(ahead):
    schedule = pipert.Schedule.build("gpipe", num_ranks=2, num_microbatches=6)
    run_late(*late_pipe(2, schedule.with_offload(ahead=ahead)), num_passes=40)


def test_weights_that_two_ranks_share_add_up_whole():
    model, reference = twins(mlp, 2, width=WIDTH)
    shared = model[0]
    stages = [nn.Sequential(Late(1), shared), nn.Sequential(shared, Late(2))]
    loop = nn.Sequential(reference[0], reference[0]).cuda()
    x, y = (t.cuda() for t in batch(24, width=WIDTH))
    plain_loop(loop, x, y, 6)
    wanted = [p.grad.clone() for p in loop.parameters()]
    with pipert.Pipeline(stages, devices=["cuda:0"] * 2, num_microbatches=6, loss_fn=mse) as pipe:
        got = []
        for _ in range(60):
            pipe.step(x, target=y)
            got.append([p.grad for p in shared.parameters()])
            shared.zero_grad()
        for gradients in got:
            for one, other in zip(gradients, wanted, strict=True):
                torch.testing.assert_close(one, other)


def test_ranks_on_the_gpu_and_the_cpu_hand_over_what_is_written():
    torch.manual_seed(0)
    stages = [nn.Sequential(Late(i), nn.Linear(WIDTH, WIDTH), Late(9 + i)) for i in range(2)]
    stages.insert(1, nn.Linear(WIDTH, WIDTH))
    stages.append(nn.Linear(WIDTH, WIDTH))
    devices = ["cuda:0", "cpu", "cuda:0", "cpu"]
    x, y = batch(12, width=WIDTH)
    with pipert.Pipeline(stages, devices=devices, num_microbatches=4, loss_fn=mse) as pipe:
        results = []
        for _ in range(20):
            losses = pipe.step(x.cuda(), target=y).losses
            results.append((losses, [p.grad for p in pipe.parameters()]))
            for parameter in pipe.parameters():
                parameter.grad = None
    weights = [p for stage in stages for p in stage.parameters()]
    losses = []
    for part, target in zip(x.tensor_split(4), y.tensor_split(4), strict=True):
        for stage, device in zip(stages, devices, strict=True):
            part = stage(part.to(device))
        loss = mse(part, target)
        (loss / 4).backward()
        losses.append(loss.detach())
    for got, gradients in results:
        assert same_bits(got, torch.stack(losses))
        for one, parameter in zip(gradients, weights, strict=True):
            assert same_bits(one, parameter.grad)


def test_a_pass_comes_after_what_the_callers_stream_had_to_do_and_before_what_it_gets():
    pipe, reference = late_pipe(2)
    x, y = (t.cuda() for t in batch(24, width=WIDTH))
    losses, gradients = expected_of(reference, pipe, x, y)
    torch.cuda.synchronize()
    with pipe, torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            for parameter in pipe.parameters():
                parameter.grad = None
            torch.cuda._sleep(500_000)
            result = pipe.step(x * 1, target=y * 1)
            got = result.losses * 1, [p.grad * 1 for p in pipe.parameters()]
            assert same_bits(got[0], losses)
            assert all(map(same_bits, got[1], gradients))


def test_what_a_pipeline_left_behind_outlives_it():
    x, y = (t.cuda() for t in batch(24, width=WIDTH))
    for _ in range(15):
        stages = [nn.Sequential(Late(0), nn.Linear(WIDTH, WIDTH)), nn.Identity()]
        with pipert.Pipeline(
            stages, devices=["cuda:0"] * 2, num_microbatches=4, loss_fn=mse
        ) as pipe:
            result = pipe.step(x, target=y, return_outputs=True)
        before = result.outputs.clone()
        del pipe, stages
        gc.collect()
        torch.cuda.empty_cache()
        assert same_bits(result.outputs, before)
        del result
    torch.cuda.synchronize()


# --- device times ---------------------------------------------------------------------------------

SLEEP = 1_000_000  # cycles: no GPU has a clock of more than 3 GHz
LEAST_S = SLEEP / 3e9


class Sleeper(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        torch.cuda._sleep(SLEEP)
        return self.linear(x)


def sleepers(schedule="1f1b", num_microbatches=8, **options):
    return pipert.Pipeline(
        [Sleeper(), Sleeper()],
        schedule=schedule,
        num_ranks=2,
        devices=["cuda:0"] * 2,
        num_microbatches=num_microbatches,
        loss_fn=mse,
        **options,
    )


def test_the_devices_times_see_what_the_host_did_not_wait_for():
    x, y = (t.cuda() for t in batch(16, width=WIDTH))
    with sleepers(device_times=True, trace=2) as pipe:
        for _ in range(3):
            pipe.step(x, target=y)
        for ago in range(2):
            trace = pipe.trace(ago=ago)
            forwards = [e for e in trace.events if e.action is not None and e.action.kind == "F"]
            assert len(forwards) == 16
            took = [e.ended - e.started for e in forwards]
            assert min(took) >= LEAST_S, took
            assert trace.device_timed == {0, 1}


def test_the_parts_of_a_report_add_up_and_the_messages_are_beside_compute():
    x, y = (t.cuda() for t in batch(16, width=WIDTH))
    with sleepers(device_times=True) as pipe:
        for _ in range(3):
            pipe.step(x, target=y)
        report, trace = pipe.report(), pipe.trace()
        print(report)
        for rank in report.ranks:
            parts = {part: getattr(rank, part) for part in PARTS}
            assert min(parts.values()) >= -1e-9, parts
            assert sum(parts.values()) == pytest.approx(rank.step_s, rel=0.01), parts
            assert rank.compute_s >= 8 * LEAST_S
            runs = [e for e in trace.events_of(rank.rank) if e.kind == "run"]
            assert all(a.ended <= b.started for a, b in itertools.pairwise(runs))
        assert all(0 <= bubble < 1 for bubble in report.bubble_measured)
        assert all(share is not None and 0 <= share <= 1 for share in report.transfer_hidden)


def test_moves_to_the_host_are_timed_on_their_lanes():
    schedule = pipert.Schedule.build("gpipe", num_ranks=2, num_microbatches=6).with_offload(ahead=0)
    x, y = (t.cuda() for t in batch(12, width=WIDTH))
    with sleepers(schedule, 6, device_times=True) as pipe:
        pipe.step(x, target=y)
        pipe.step(x, target=y)
        trace, report = pipe.trace(), pipe.report()
        moves = [e for e in trace.events if e.kind == "move"]
        assert moves
        assert all(e.ended >= e.started for e in moves)
        for rank in report.ranks:
            parts = [getattr(rank, part) for part in PARTS]
            assert sum(parts) == pytest.approx(rank.step_s, rel=0.01), parts


def test_ranges_for_a_profiler_change_nothing():
    script = """
        import torch, pipert
        from torch import nn
        stages = [nn.Linear(8, 8), nn.Linear(8, 8)]
        with pipert.Pipeline(stages, devices=["cuda:0"] * 2, num_microbatches=4,
                             loss_fn=nn.functional.mse_loss) as pipe:
            x = torch.ones(8, 8, device="cuda")
            for _ in range(3):
                loss = pipe.step(x, target=x).loss
            print(pipert._C.has_profiler_ranges(), loss.item())
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(
        command,
        env={**os.environ, "PIPERT_NVTX": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    print(run.stdout)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_with_a_seed_ranks_that_share_the_gpu_draw_as_one_rank_does(schedule):
    x, y = (t.cuda() for t in batch(24, width=WIDTH))

    def run(num_ranks):
        layers = [layer for each in mlp(4, width=WIDTH) for layer in (each, nn.Dropout(0.3))]
        torch.manual_seed(7)
        with pipert.Pipeline(
            pipert.split(nn.Sequential(*layers), num_ranks),
            schedule=schedule,
            devices=["cuda:0"] * num_ranks,
            num_microbatches=8,
            loss_fn=mse,
            rng_seed=3,
        ) as pipe:
            losses = [pipe.step(x, target=y).losses for _ in range(10)]
            return losses, [p.grad for p in pipe.parameters()], torch.rand(4, device="cuda")

    expected = run(1)
    for num_ranks in (2, 4):
        losses, gradients, after = run(num_ranks)
        assert all(map(same_bits, losses, expected[0])), num_ranks
        assert all(map(same_bits, gradients, expected[1])), num_ranks
        assert same_bits(after, expected[2])
