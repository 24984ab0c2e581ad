"""Messages that travel in a narrower format: the bits that are promised, and models that learn."""

import pytest
import torch
from plain_loop import batch, mlp, plain_loop, same_bits, twins
from rounded_edges import rounded, with_edges
from torch import nn

import pipert
from pipert.compression import check_compressible

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss
COMPRESSIONS = ("bfloat16", "float16", "fp8_block")


def pipeline(stages, compression, **options):
    options = {"num_microbatches": 4, "loss_fn": mse, **options}
    return pipert.Pipeline(stages, compression=compression, **options)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb_h1"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_losses_and_gradients_are_those_of_stages_with_a_rounding_between(compression, schedule):
    model, reference = twins(mlp, 6, width=40)
    stages = pipert.split(reference, 3)
    x, y = batch(8, width=40)
    losses = plain_loop(with_edges(stages, compression), x, y, 4)
    with pipeline(pipert.split(model, 3), compression, schedule=schedule) as pipe:
        result = pipe.step(x, target=y, return_outputs=True)
        assert same_bits(result.losses, losses)
        found = dict(pipe.named_parameters())
        for name, parameter in reference.named_parameters():
            assert same_bits(found[name].grad, parameter.grad), name
        assert same_bits(pipe.evaluate(x, target=y).losses, losses)
    _, unrounded = twins(mlp, 6, width=40)
    assert not same_bits(plain_loop(unrounded, x, y, 4), losses), "nothing was rounded"


class Mixed(nn.Module):
    """Hands on a dict of what is rounded and what isn't, None and a number among it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        y = self.layer(x)
        return {
            "wide": y.t(),
            "double": y.double(),
            "half": y.bfloat16(),
            "places": y.argmax(1),
            "nothing": (None, 3),
            "empty": y[:0],
            "scalar": y.sum(),
        }


class Unmix(nn.Module):
    def forward(self, given):
        assert given["nothing"] == (None, 3)
        assert given["empty"].shape == (0, 8)
        self.given = given
        rest = given["double"].float() + given["half"].float()
        return given["wide"].t() + rest + given["scalar"] + given["places"][:, None]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_other_dtypes_and_the_structure_of_a_message_arrive_as_they_are(compression):
    first = Mixed()
    x, _ = batch(6)
    expected = first(x)
    last = Unmix()
    stages = [first, last]
    with pipeline(stages, compression, num_microbatches=1) as pipe:
        pipe.step(x, target=torch.zeros(6, 8))
        given = last.given
    assert list(given) == list(expected)
    for name in ("double", "half", "places"):
        assert same_bits(given[name].detach(), expected[name].detach()), name
    for name in ("wide", "scalar"):
        assert same_bits(given[name].detach(), rounded(expected[name].detach(), compression)), name


def attention_model(seed=0):
    torch.manual_seed(seed)
    block = [nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True) for _ in range(4)]
    return nn.Sequential(nn.Embedding(17, 32), *block, nn.Linear(32, 17))


def next_word_loss(output, target):
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def trained(compression, num_steps=60):
    """The losses of a small transformer that learns to count up and down modulo 17."""
    generator = torch.Generator().manual_seed(5)
    stages = pipert.split(attention_model(), 4)
    losses = []
    with pipeline(stages, compression, loss_fn=next_word_loss) as pipe:
        optimizer = torch.optim.AdamW(pipe.parameters(), lr=2e-3)
        for _ in range(num_steps):
            start = torch.randint(0, 17, (16, 1), generator=generator)
            words = (start + torch.arange(9) * (1 + 2 * (start % 2))) % 17
            optimizer.zero_grad()
            losses.append(pipe.step(words[:, :-1], target=words[:, 1:]).loss.item())
            optimizer.step()
    return losses


def test_a_small_transformer_learns_about_as_well_with_compressed_edges():
    plain = trained("none")
    last = sum(plain[-5:]) / 5
    assert last < 0.4 * plain[0], plain
    for compression in COMPRESSIONS:
        losses = trained(compression)
        assert losses != plain, "nothing was rounded"
        found = sum(losses[-5:]) / 5
        assert abs(found - last) < 0.15 * last + 0.02, (compression, found, last)


def test_a_message_takes_the_time_of_its_compressed_bytes_on_a_slow_link():
    x, y = batch(4, width=4096)
    seconds = {}
    for compression in ("none", "fp8_block"):
        model = nn.Sequential(nn.Tanh(), nn.Tanh())
        link = pipert.Costs(bandwidth=65536 / 0.08)  # a whole activation takes 80 ms
        with pipeline(
            pipert.split(model, 2), compression, network=link, num_microbatches=1
        ) as pipe:
            pipe.evaluate(x, target=y)
            events = {str(e.action): e for e in pipe.trace().events if e.action is not None}
        seconds[compression] = events["1F0"].started - events["0F0"].ended
    assert seconds["none"] >= 0.08
    assert seconds["fp8_block"] < seconds["none"] / 2


@pytest.mark.parametrize("compression", ["fp8", "", None, "as_is", "float32"])
def test_an_unknown_compression_is_refused(compression):
    with pytest.raises(ValueError, match='compression must be one of "none", "bfloat16"'):
        pipeline(pipert.split(mlp(2), 2), compression)


def test_devices_without_kernels_are_refused():
    with pytest.raises(ValueError, match="compression is for ranks on the CPU or on CUDA"):
        check_compressible("bfloat16", {0: torch.device("cpu"), 1: torch.device("mps")})
    check_compressible("none", {0: torch.device("mps")})
