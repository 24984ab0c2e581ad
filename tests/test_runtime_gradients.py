"""Gradients, losses and outputs of a pipeline are bit for bit those of the plain loop."""

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, same_bits, twins
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


def make_pipe(model, schedule, ranks, stages_per_rank, microbatches, **options):
    return pipert.Pipeline(
        pipert.split(model, ranks * stages_per_rank),
        schedule=schedule,
        num_ranks=ranks,
        num_microbatches=microbatches,
        loss_fn=options.pop("loss_fn", mse),
        **options,
    )


def configurations():
    for ranks in (1, 2, 3, 4):
        for microbatches in (4, 7, 12):
            yield "gpipe", ranks, 1, microbatches
            yield "1f1b", ranks, 1, microbatches
            yield "eager_1f1b", ranks, 1, microbatches
            yield "hanayo", ranks, 2, microbatches
            if microbatches % ranks == 0:
                yield "interleaved_1f1b", ranks, 2, microbatches


@pytest.mark.parametrize(
    ("schedule", "ranks", "stages_per_rank", "microbatches"), list(configurations())
)
@pytest.mark.parametrize("rows_over", [0, 3], ids=["even", "uneven"])
def test_gradients_and_losses_equal_the_plain_loop_bit_for_bit(
    schedule, ranks, stages_per_rank, microbatches, rows_over
):
    model, reference = twins(mlp, 8)
    x, y = batch(2 * microbatches + rows_over)
    with make_pipe(model, schedule, ranks, stages_per_rank, microbatches) as pipe:
        for _ in range(2):  # gradients add up over steps
            result = pipe.step(x, target=y)
            losses = plain_loop(reference, x, y, microbatches)
            assert same_bits(result.losses, losses)
            assert_same_gradients(pipe, reference)


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_interleaved_groups_of_any_size_give_the_same_gradients(group_size):
    model, reference = twins(mlp, 6)
    x, y = batch(8)
    options = {"schedule_options": {"group_size": group_size}}
    try:
        pipe = make_pipe(model, "interleaved_1f1b", 2, 3, 8, **options)
    except ValueError:
        assert group_size < 2  # smaller than the number of ranks
        return
    with pipe:
        result = pipe.step(x, target=y)
        assert same_bits(result.losses, plain_loop(reference, x, y, 8))
        assert_same_gradients(pipe, reference)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_looped_bfs_equals_the_plain_loop_backwards_bit_for_bit(ranks):
    model, reference = twins(mlp, 2 * ranks)
    x, y = batch(11)
    with make_pipe(model, "looped_bfs", ranks, 2, 4) as pipe:
        result = pipe.step(x, target=y)
        losses = plain_loop(reference, x, y, 4, backwards=True)
        assert same_bits(result.losses, losses)
        assert_same_gradients(pipe, reference)


def test_a_schedule_of_ones_own_gives_the_same_gradients():
    """V-shaped: rank 0 has the first and the last stage."""
    schedule = pipert.Schedule(
        [
            ["0F0", "0F1", "3F0", "3B0", "3F1", "3B1", "0B0", "0B1"],
            ["1F0", "2F0", "1F1", "2F1", "2B0", "1B0", "2B1", "1B1"],
        ],
        placement=pipert.Placement(2, [0, 1, 1, 0]),
    )
    model, reference = twins(mlp, 4)
    x, y = batch(6)
    with pipert.Pipeline(
        pipert.split(model, 4), schedule=schedule, num_microbatches=2, loss_fn=mse
    ) as pipe:
        result = pipe.step(x, target=y)
        assert same_bits(result.losses, plain_loop(reference, x, y, 2))
        assert_same_gradients(pipe, reference)


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zb_interleaved"])
@pytest.mark.parametrize(("receive_slots", "send_slots"), [(1, None), (1, 1), (3, 2)])
def test_the_number_of_slots_changes_no_bit(schedule, receive_slots, send_slots):
    model, reference = twins(mlp, 4)
    x, y = batch(16)
    slots = {"receive_slots": receive_slots, "send_slots": send_slots}
    with make_pipe(model, schedule, 2, 2, 8, **slots) as pipe:
        pipe.step(x, target=y)
        pipe.evaluate(x, target=y)
        plain_loop(reference, x, y, 8)
        assert_same_gradients(pipe, reference)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    ],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize(
    ("schedule", "ranks", "stages_per_rank"),
    [("gpipe", 2, 1), ("1f1b", 4, 1), ("interleaved_1f1b", 2, 2)],
)
def test_ten_optimizer_steps_follow_the_plain_loop_bit_for_bit(
    make_optimizer, schedule, ranks, stages_per_rank
):
    model, reference = twins(mlp, 4)
    with make_pipe(model, schedule, ranks, stages_per_rank, 4) as pipe:
        ours = make_optimizer(pipe.parameters())
        theirs = make_optimizer(reference.parameters())
        for step in range(10):
            x, y = batch(9, seed=step)
            result = pipe.step(x, target=y)
            assert same_bits(result.losses, plain_loop(reference, x, y, 4))
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
        for (name, p), (other, q) in zip(
            pipe.named_parameters(), reference.named_parameters(), strict=True
        ):
            assert name == other
            assert same_bits(p.detach(), q.detach()), name


def test_the_loss_of_an_even_batch_is_the_mean_of_the_microbatches_losses():
    x, y = batch(8)
    with make_pipe(mlp(2), "1f1b", 2, 1, 4) as pipe:
        result = pipe.step(x, target=y)
        assert result.loss.shape == ()
        assert same_bits(result.loss, result.losses.mean())


def test_the_loss_of_an_uneven_batch_weighs_microbatches_by_their_rows():
    model, reference = twins(mlp, 2)
    x, y = batch(10)  # 3 + 3 + 2 + 2
    with make_pipe(model, "1f1b", 2, 1, 4) as pipe:
        result = pipe.step(x, target=y)
    rows = torch.tensor([3.0, 3.0, 2.0, 2.0])
    torch.testing.assert_close(result.loss, (result.losses * rows).sum() / 10)
    torch.testing.assert_close(result.loss, mse(reference(x), y))
    mse(reference(x), y).backward()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_microbatches_that_come_cut_count_alike_whatever_their_size():
    model, reference = twins(mlp, 2)
    sizes = (1, 4, 2)
    pieces = [batch(n, seed=n) for n in sizes]
    with make_pipe(model, "gpipe", 2, 1, 3) as pipe:
        result = pipe.step(
            microbatches=[x for x, _ in pieces], target=[y for _, y in pieces], return_outputs=True
        )
        losses = []
        for x, y in pieces:
            loss = mse(reference(x), y)
            loss.backward(torch.full_like(loss, 1 / 3))
            losses.append(loss.detach())
        assert same_bits(result.losses, torch.stack(losses))
        assert same_bits(result.loss, result.losses.mean())
        assert [output.shape[0] for output in result.outputs] == list(sizes)
        assert_same_gradients(pipe, reference)


def test_microbatches_may_be_tuples_dicts_or_single_arguments():
    def first(x, scale=1.0):
        return x * scale

    def sum_of(output):
        return output.sum()

    x = torch.ones(2)
    with pipert.Pipeline(
        [first, lambda h: h + 1], schedule="gpipe", num_microbatches=3, loss_fn=sum_of
    ) as pipe:
        result = pipe.evaluate(microbatches=[(x,), {"x": x, "scale": 3.0}, x], return_outputs=True)
    assert [output.tolist() for output in result.outputs] == [[2, 2], [4, 4], [2, 2]]
    assert result.losses.tolist() == [4, 8, 4]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved_1f1b"])
def test_evaluate_and_call_equal_the_model_and_leave_no_gradient(schedule):
    model, reference = twins(mlp, 4)
    x, y = batch(10)
    ranks, per_rank = (2, 2) if schedule == "interleaved_1f1b" else (4, 1)
    with make_pipe(model, schedule, ranks, per_rank, 4) as pipe:
        with torch.no_grad():
            expected = [reference(piece) for piece in x.tensor_split(4)]
            losses = [mse(o, t) for o, t in zip(expected, y.tensor_split(4), strict=True)]
        result = pipe.evaluate(x, target=y, return_outputs=True)
        assert same_bits(result.outputs, torch.cat(expected))
        assert same_bits(result.losses, torch.stack(losses))
        assert same_bits(pipe(x), torch.cat(expected))
        assert not result.outputs.requires_grad
        assert all(p.grad is None for p in pipe.parameters())
        assert pipe.evaluate(x, target=y).outputs is None


def test_steps_and_evaluations_may_take_turns():
    model, reference = twins(mlp, 4)
    x, y = batch(8)
    with make_pipe(model, "1f1b", 4, 1, 4) as pipe:
        for _ in range(3):
            pipe.evaluate(x, target=y)
            pipe.step(x, target=y)
            pipe(x)
            plain_loop(reference, x, y, 4)
            assert_same_gradients(pipe, reference)


def test_outputs_of_a_training_step_are_those_of_the_model_and_detached():
    model, reference = twins(mlp, 4)
    x, y = batch(8)
    with make_pipe(model, "1f1b", 2, 1, 4) as pipe:
        outputs = pipe.step(x, target=y, return_outputs=True).outputs
    assert not outputs.requires_grad
    assert same_bits(outputs, torch.cat([reference(p) for p in x.tensor_split(4)]).detach())


def test_gradients_of_the_batch_itself_reach_the_caller():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with make_pipe(model, "1f1b", 2, 1, 4) as pipe:
        pipe.step(ours, target=y)
    plain_loop(reference, theirs, y, 4)
    assert same_bits(ours.grad, theirs.grad)


def test_loss_kwargs_reach_the_loss_function_whole():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with make_pipe(model, "1f1b", 2, 1, 4) as pipe:
        result = pipe.step(x, target=y, loss_kwargs={"reduction": "sum"})
    expected = plain_loop(reference, x, y, 4, lambda o, t: mse(o, t, reduction="sum"))
    assert same_bits(result.losses, expected)


def test_a_loss_without_a_target_takes_the_output_alone():
    model, reference = twins(mlp, 2)
    x, _ = batch(8)
    with make_pipe(model, "1f1b", 2, 1, 4, loss_fn=lambda output: output.square().mean()) as pipe:
        result = pipe.step(x)
    expected = plain_loop(reference, x, x, 4, lambda output, _: output.square().mean())
    assert same_bits(result.losses, expected)


def test_double_precision_stays_double():
    model, reference = twins(lambda: mlp(2).double())
    x, y = (t.double() for t in batch(7))
    with make_pipe(model, "1f1b", 2, 1, 3) as pipe:
        result = pipe.step(x, target=y)
        assert result.losses.dtype == result.loss.dtype == torch.float64
        assert same_bits(result.losses, plain_loop(reference, x, y, 3))
        assert_same_gradients(pipe, reference)


def test_torchs_intra_op_threads_are_shared_out_and_the_callers_stay():
    before = torch.get_num_threads()
    seen = []

    def stage(x):
        seen.append(torch.get_num_threads())
        return x

    try:
        torch.set_num_threads(2)
        with pipert.Pipeline([stage, stage], schedule="gpipe", num_microbatches=1) as pipe:
            pipe(torch.zeros(1, 1))
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
        seen.clear()
        with pipert.Pipeline(
            [stage, stage], schedule="gpipe", num_microbatches=1, intra_op_threads=2
        ) as pipe:
            pipe(torch.zeros(1, 1))
        assert seen == [2, 2]
    finally:
        torch.set_num_threads(before)
