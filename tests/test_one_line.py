"""One line that makes a Pipeline, and those of other libraries."""

import copy

import pytest
import torch
from plain_loop import assert_same_gradients, batch, plain_loop
from torch import nn
from torch.nn import functional

import pipert
from pipert.compat.torchgpipe import GPipe, balance_by_size, balance_by_time

pytestmark = pytest.mark.timeout(60)

WIDTH = 4


def model(count=4):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(count)))


def assert_trains_as_the_plain_loop(pipe, plain, num_microbatches):
    x, y = batch(16, WIDTH)
    result = pipe.step(x, target=y)
    assert torch.equal(result.losses, plain_loop(plain, x, y, num_microbatches))
    assert_same_gradients(pipe, plain)


def test_a_number_of_stages_is_enough():
    net = model()
    plain = copy.deepcopy(net)
    with pipert.pipeline(net, partition=2, loss_fn=functional.mse_loss) as pipe:
        schedule = pipe.schedule
        assert (schedule.num_ranks, schedule.num_stages, schedule.num_microbatches) == (2, 2, 8)
        assert_trains_as_the_plain_loop(pipe, plain, 8)


@pytest.mark.parametrize(
    ("partition", "sizes"), [([3, 1], [3, 1]), (["1", "3"], [1, 2, 1]), (1, [4])]
)
def test_layers_of_each_stage_or_where_they_begin(partition, sizes):
    with pipert.pipeline(model(), partition, loss_fn=functional.mse_loss) as pipe:
        assert [len(stage) for stage in pipe.stages.values()] == sizes


def test_several_stages_a_rank_are_interleaved():
    net = model()
    plain = copy.deepcopy(net)
    options = {"num_ranks": 2, "num_microbatches": 4, "trace": 3}
    with pipert.pipeline(net, 4, loss_fn=functional.mse_loss, **options) as pipe:
        assert pipe.schedule.name == "interleaved_1f1b"
        assert pipe.schedule.placement.ranks == [0, 1, 0, 1]
        assert_trains_as_the_plain_loop(pipe, plain, 4)


def test_what_it_is_to_be_cut_into_must_be_said():
    with pytest.raises(ValueError, match="expected a partition, such as 2 stages, or a group"):
        pipert.pipeline(model())
    with pytest.raises(TypeError, match="partition must be a number of stages"):
        pipert.pipeline(model(), "2")
    with pytest.raises(TypeError, match="partition must be a number of stages"):
        pipert.pipeline(model(), [1, "2"])


def test_torchgpipes_line_makes_a_pipeline_of_threads():
    net = model()
    plain = copy.deepcopy(net)
    with GPipe(net, balance=[2, 2], chunks=4, loss_fn=functional.mse_loss) as pipe:
        assert pipe.schedule.name == "gpipe"
        assert_trains_as_the_plain_loop(pipe, plain, 4)
        x, _ = batch(16, WIDTH)
        assert torch.equal(pipe(x), plain(x))
    with GPipe(net, devices=["cpu", "cpu"], checkpoint="never") as pipe:
        assert len(pipe.stages) == 2
    with pytest.raises(ValueError, match=r"expected a balance, such as \[2, 2\], or devices"):
        GPipe(net)
    with pytest.raises(ValueError, match="checkpoint must be 'always', 'except_last' or 'never'"):
        GPipe(net, [2, 2], checkpoint="sometimes")


def test_torchgpipes_users_balance_and_defer_batch_norm():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 512), nn.Linear(512, 512), nn.Linear(512, WIDTH)
    )
    x, y = batch(16, WIDTH)
    sizes = balance_by_time(2, net, x[:4])
    assert (len(sizes), sum(sizes)) == (2, 4)
    balance = balance_by_size(2, net, x[:4])
    assert balance == [2, 2]
    whole = copy.deepcopy(net[0])
    whole(x)
    options = {"chunks": 4, "deferred_batch_norm": True, "loss_fn": functional.mse_loss}
    with GPipe(net, balance, checkpoint="always", **options) as pipe:
        pipe.step(x, target=y)
    assert net[0].num_batches_tracked == 1
    torch.testing.assert_close(net[0].running_mean, whole.running_mean)
    torch.testing.assert_close(net[0].running_var, whole.running_var)
