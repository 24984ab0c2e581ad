"""Captured steps on a GPU: the bits of other stages, and what happens where recording fails."""

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, same_bits, twins
from test_gpu_schedules import SCHEDULES, sizes
from torch import nn

import pipert
from pipert.captured import MAX_RECORDINGS, NUM_WARMUPS

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
mse = nn.functional.mse_loss


def cuda_batch(rows, width=64, seed=1):
    return tuple(tensor.cuda() for tensor in batch(rows, width=width, seed=seed))


def pipeline(model, num_stages=2, ranks=1, **options):
    options = {"schedule": "interleaved_1f1b" if ranks < num_stages else "1f1b"} | options
    return pipert.Pipeline(
        pipert.split(model, num_stages),
        num_ranks=ranks,
        devices=["cuda:0"] * ranks,
        num_microbatches=4,
        loss_fn=mse,
        stage_kind="captured",
        **options,
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_replayed_steps_have_the_bits_of_module_stages(name, ranks):
    num_stages, microbatches = sizes(name, ranks)
    model, other = twins(mlp, num_stages, width=64)
    pipes, optimizers = [], []
    for kind, twin in (("captured", model), ("module", other)):
        pipes.append(
            pipert.Pipeline(
                pipert.split(twin.cuda(), num_stages),
                schedule=name,
                num_ranks=ranks,
                devices=["cuda:0"] * ranks,
                num_microbatches=microbatches,
                loss_fn=mse,
                stage_kind=kind,
            )
        )
        optimizers.append(torch.optim.SGD(pipes[-1].parameters(), lr=0.1))
    with pipes[0], pipes[1]:
        for step in range(NUM_WARMUPS + 4):
            x, y = cuda_batch(4 * microbatches, seed=step)
            ours, theirs = (pipe.step(x, target=y, return_outputs=True) for pipe in pipes)
            assert same_bits(ours.losses, theirs.losses)
            assert same_bits(ours.loss, theirs.loss)
            assert same_bits(ours.outputs, theirs.outputs)
            assert_same_gradients(pipes[0], pipes[1])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        assert set(pipes[0].stage_kinds.values()) == {"captured"}, pipes[0].stage_kinds


def test_gradients_add_up_over_replayed_steps():
    model, reference = twins(mlp, 2, width=64)
    model.cuda(), reference.cuda()
    x, y = cuda_batch(16)
    with pipeline(model) as pipe:
        for _ in range(2 * NUM_WARMUPS + 3):
            pipe.step(x, target=y)
            plain_loop(reference, x, y, 4)
            assert_same_gradients(pipe, reference)
        assert pipe.stage_kinds == {0: "captured", 1: "captured"}


def test_main_gradients_add_up_over_replayed_steps():
    model, reference = twins(mlp, 2, width=64)
    model.cuda(), reference.cuda()
    x, y = cuda_batch(16)
    with pipeline(model, main_grads=True) as pipe:
        for _ in range(NUM_WARMUPS + 3):
            pipe.zero_main_grads()
            pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        assert pipe.stage_kinds == {0: "captured", 1: "captured"}
        for (name, ours), theirs in zip(
            pipe.named_parameters(), reference.parameters(), strict=True
        ):
            assert ours.grad is None
            assert torch.equal(ours.main_grad, theirs.grad), name


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_replay_draws_other_dropout_masks(ranks):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.5)
    ).cuda()
    x, y = cuda_batch(16)
    with pipeline(model, ranks=ranks) as pipe:
        losses = [pipe.step(x, target=y).loss.item() for _ in range(2 * NUM_WARMUPS + 6)]
        kinds = set(pipe.stage_kinds.values())
    assert kinds == {"captured"}, kinds
    assert len(set(losses)) == len(losses)


class Syncs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, x):
        return self.inner(x) * (1 if x.sum().item() < 1e9 else 2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stage_that_waits_for_the_device_runs_as_it_is_and_says_why(ranks):
    model, reference = twins(
        lambda: nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.0), Syncs(), nn.Linear(64, 64))
    )
    model.cuda(), reference.cuda()
    x, y = cuda_batch(16)
    with pipeline(model, ranks=ranks) as pipe:
        for _ in range(2 * NUM_WARMUPS + 4):
            losses = pipe.step(x, target=y).losses
            assert same_bits(losses, plain_loop(reference, x, y, 4))
            assert_same_gradients(pipe, reference)
        assert "module: it can't be recorded" in pipe.stage_kinds[0], pipe.stage_kinds
        print(pipe.stage_kinds)
    # Nothing is left behind: draws, allocations and recordings work as before.
    torch.nn.functional.dropout(torch.ones(1000, device="cuda")).sum().item()
    again, _ = twins(mlp, 2, width=64)
    with pipeline(again.cuda()) as pipe:
        for _ in range(2 * NUM_WARMUPS + 4):
            pipe.step(x, target=y)
        assert pipe.stage_kinds == {0: "captured", 1: "captured"}


def test_new_shapes_are_recorded_within_a_bounded_cache():
    model, reference = twins(mlp, 2, width=64)
    model.cuda(), reference.cuda()
    with pipeline(model) as pipe:
        for rows in range(8, 8 + 4 * (MAX_RECORDINGS + 2), 4):
            x, y = cuda_batch(rows)
            for _ in range(NUM_WARMUPS + 2):
                for parameter in (*model.parameters(), *reference.parameters()):
                    parameter.grad = None
                losses = pipe.step(x, target=y).losses
                assert same_bits(losses, plain_loop(reference, x, y, 4))
                assert_same_gradients(pipe, reference)
            assert pipe.stage_kinds == {0: "captured", 1: "captured"}
        assert pipe._captured.num_recordings == MAX_RECORDINGS


def test_evaluations_and_autocast_are_recorded_apart():
    model, reference = twins(mlp, 2, width=64)
    model.cuda(), reference.cuda()
    x, y = cuda_batch(16)

    def expected():
        with torch.no_grad():
            return torch.stack(
                [
                    mse(reference(a), b)
                    for a, b in zip(x.tensor_split(4), y.tensor_split(4), strict=True)
                ]
            )

    with pipeline(model) as pipe:
        for _ in range(NUM_WARMUPS + 2):
            assert same_bits(pipe.evaluate(x, target=y).losses, expected())
        with torch.autocast("cuda", torch.bfloat16):
            for _ in range(NUM_WARMUPS + 2):
                assert same_bits(pipe.evaluate(x, target=y).losses, expected())
        assert pipe.stage_kinds == {0: "captured", 1: "captured"}
        assert pipe._captured.num_recordings == 2


def test_memory_does_not_grow_with_replays():
    model, _ = twins(mlp, 2, width=64)
    x, y = cuda_batch(16)
    with pipeline(model.cuda()) as pipe:
        for _ in range(2 * NUM_WARMUPS + 2):
            pipe.step(x, target=y)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(50):
            pipe.step(x, target=y)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() <= before + 1024


def test_steps_from_several_streams_come_one_after_the_other():
    model, reference = twins(mlp, 2, width=64)
    model.cuda(), reference.cuda()
    streams = [torch.cuda.Stream() for _ in range(3)]
    with pipeline(model) as pipe:
        for _ in range(NUM_WARMUPS + 1):
            x, y = cuda_batch(16)
            pipe.evaluate(x, target=y)
        torch.cuda.synchronize()
        batches = [cuda_batch(16, seed=seed) for seed in range(12)]
        torch.cuda.synchronize()
        found = []
        for step, (x, y) in enumerate(batches):
            with torch.cuda.stream(streams[step % 3]):
                torch.cuda._sleep(200_000 * (step % 2))
                found.append(pipe.evaluate(x, target=y).losses)
        torch.cuda.synchronize()
        assert pipe.stage_kinds == {0: "captured", 1: "captured"}
        with torch.no_grad():
            for losses, (x, y) in zip(found, batches, strict=True):
                pieces = zip(x.tensor_split(4), y.tensor_split(4), strict=True)
                assert same_bits(losses, torch.stack([mse(reference(a), b) for a, b in pieces]))


def test_ctrl_c_while_a_step_is_recorded_leaves_everything_as_it_was():
    class Interrupts(nn.Module):
        count = 0

        def forward(self, x):
            self.count += 1
            if self.count == 4 * NUM_WARMUPS + 2:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(nn.Linear(64, 64), Interrupts(), nn.Linear(64, 64)).cuda()
    x, y = cuda_batch(16)
    pipe = pipert.Pipeline(
        [model[:2], model[2:]],
        schedule="interleaved_1f1b",
        num_ranks=1,
        devices=["cuda:0"],
        num_microbatches=4,
        loss_fn=mse,
        stage_kind="captured",
    )
    with pipe:
        for _ in range(NUM_WARMUPS):
            model.zero_grad()
            losses = pipe.step(x, target=y).losses
        before = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        with pytest.raises(pipert.PipelineError) as raised:
            pipe.step(x, target=y)
        assert isinstance(raised.value.__cause__, KeyboardInterrupt)
        model.zero_grad()
        for _ in range(NUM_WARMUPS + 2):
            model.zero_grad()
            assert same_bits(pipe.step(x, target=y).losses, losses)
        for parameter, gradient in zip(model.parameters(), before, strict=True):
            assert same_bits(parameter.grad, gradient)


class Waits(nn.Module):
    """Waits for the device for some batches, and not for others."""

    def forward(self, x):
        if x.shape[0] == 3:
            x.sum().item()
        return x


def test_a_recording_that_broke_leaves_the_draws_of_others_alone():
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), Waits(), nn.Linear(64, 64)).cuda()
    x, y = cuda_batch(16)
    fewer, target = cuda_batch(12)  # 3 rows a microbatch
    with pipeline(model) as pipe:

        def losses(seed=None):
            model.zero_grad()
            if seed is not None:
                torch.cuda.manual_seed(seed)
            return pipe.step(x, target=y).losses

        for _ in range(NUM_WARMUPS + 2):
            losses()
        assert pipe._captured.reason is None
        for _ in range(NUM_WARMUPS + 2):
            model.zero_grad()
            pipe.step(fewer, target=target)
        assert "can't be recorded" in pipe._captured.reason
        first, again, other = losses(5), losses(5), losses()
        assert pipe._captured.reason is None
        assert same_bits(first, again)
        assert not same_bits(again, other)
        assert pipe._captured.num_recordings == 1
        for _ in range(NUM_WARMUPS + 1):  # and more can be made
            pipe.evaluate(x, target=y)
        assert pipe._captured.num_recordings == 2
