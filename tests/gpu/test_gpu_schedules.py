"""Every schedule and kind of stage on one GPU, bit for bit against the plain loop there."""

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, same_bits, scheduled_loop, twins
from torch import nn

import pipert

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
mse = nn.functional.mse_loss

STAGES_A_RANK = {
    **dict.fromkeys(["zb_v", "v_half", "v_min", "dualpipe_v", "hanayo"], 2),
    **dict.fromkeys(["zb_interleaved", "interleaved_1f1b", "looped_bfs"], 2),
}
SCHEDULES = [
    name for name in pipert.schedules() if not name.startswith("pipedream") and name != "offload"
]


def sizes(name, ranks):
    """Stages and microbatches, enough for the schedule to reach its steady phase."""
    if name in ("dualpipe", "chimera") and ranks == 1:
        pytest.skip(f"{name} takes an even number of ranks")
    return ranks * STAGES_A_RANK.get(name, 1), 3 * max(ranks, 2)


def on_gpu(model):
    return model.to("cuda")


@pytest.mark.parametrize("kind", ["module", "native"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gradients_losses_and_outputs_equal_the_plain_loop_bit_for_bit(name, ranks, kind):
    num_stages, microbatches = sizes(name, ranks)
    model, reference = twins(mlp, num_stages, width=64)
    on_gpu(model), on_gpu(reference)
    x, y = (tensor.cuda() for tensor in batch(4 * microbatches, width=64))
    with pipert.Pipeline(
        pipert.split(model, num_stages),
        schedule=name,
        num_ranks=ranks,
        devices=["cuda:0"] * ranks,
        num_microbatches=microbatches,
        loss_fn=mse,
        stage_kind=kind,
    ) as pipe:
        stages = pipert.split(reference, num_stages)
        for _ in range(3):
            result = pipe.step(x, target=y, return_outputs=True)
            losses = scheduled_loop(reference, stages, pipe.schedule, x, y)
            assert same_bits(result.losses, losses)
            assert_same_gradients(pipe, reference)
            expected = [reference(piece).detach() for piece in x.tensor_split(microbatches)]
            assert same_bits(result.outputs, torch.cat(expected))
        assert same_bits(pipe.evaluate(x, target=y).losses, losses)
