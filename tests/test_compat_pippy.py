"""pipert.compat.pippy: PiPPy's names, and its policies of size."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipert.compat import pippy
from pipert.compat.torch_pipelining.policy import cuts_of_policy

WIDTH = 4
LAYER = WIDTH * (WIDTH + 1)  # parameters of one linear
CPU = torch.device("cpu")


class Net(nn.Module):
    """Of `LAYER` parameters in each of its layers, but the head."""

    def __init__(self, num_layers: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(num_layers)
        )
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x) * 2
        return self.head(x)


def cuts(policy):
    points = cuts_of_policy(Net(), (torch.ones(2, WIDTH),), None, policy)
    assert set(points.values()) <= {pippy.SplitPoint.BEGINNING}
    return list(points)


@pytest.mark.parametrize(
    ("num_stages", "begins"),
    [
        (1, []),
        (2, ["layers.2"]),
        (3, ["layers.1", "layers.3"]),
        (6, ["layers.0", "layers.1", "layers.2", "layers.3", "head"]),
    ],
)
def test_stages_of_equal_size_begin_with_layers(num_stages, begins):
    assert cuts(pippy.split_into_equal_size(num_stages)) == begins


@pytest.mark.parametrize(
    ("threshold", "max_stages", "begins"),
    [
        (LAYER, -1, ["layers.0", "layers.1", "layers.2", "layers.3", "head"]),
        (LAYER, 3, ["layers.0", "layers.1"]),
        (LAYER + 1, -1, ["layers.1", "layers.3"]),
        (1000, -1, []),
    ],
)
def test_a_stage_ends_when_it_is_large_enough(threshold, max_stages, begins):
    assert cuts(pippy.split_on_size_threshold(threshold, max_stages)) == begins


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="the model has 6 layers, expected 7 at least"):
        cuts(pippy.split_into_equal_size(7))
    with pytest.raises(ValueError, match="nstages must be positive, got 0"):
        pippy.split_into_equal_size(0)
    with pytest.raises(ValueError, match="threshold must be positive, got 0"):
        pippy.split_on_size_threshold(0)


# --- traced ------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_model_is_marked_cut_printed_and_run():
    model = Net()
    plain = copy.deepcopy(model)
    pippy.annotate_split_points(model, {"layers.1": pippy.SplitPoint.END})
    pipe = pippy.pipeline(model, 4, example_args=(torch.ones(8, WIDTH),))
    assert (pipe.num_chunks, pipe.num_stages) == (4, 2)
    printed = str(pipe)
    assert "(submod_pp_0)" in printed
    assert "submod_pp_1 = self.submod_pp_1(getitem)" in printed
    schedule = pippy.ScheduleGPipe(
        [pippy.PipelineStage(pipe, s, CPU) for s in range(2)], pipe.num_chunks, functional.mse_loss
    )
    x, y = torch.randn(8, WIDTH), torch.randn(8, 1)
    output = schedule.step(x, target=y)
    with schedule.pipeline:
        assert torch.equal(output, plain(x))
        for piece, target in zip(x.chunk(4), y.chunk(4), strict=True):
            (functional.mse_loss(plain(piece), target) / 4).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_policy_cuts_and_leaves_no_marks():
    model = Net()
    for policy, num_stages in (
        (pippy.split_into_equal_size(3), 3),
        (pippy.split_on_size_threshold(LAYER), 6),
        (pippy.split_into_equal_size(1), 1),
    ):
        pipe = pippy.Pipe.from_tracing(model, 4, (torch.ones(2, WIDTH),), split_policy=policy)
        assert pipe.num_stages == num_stages
        x = torch.randn(3, WIDTH)
        assert torch.equal(pipe(x), model(x))


def test_pipe_split_in_a_forward_cuts_there():
    class Marked(Net):
        def forward(self, x):
            x = self.embed(x)
            pippy.pipe_split()
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    pipe = pippy.pipeline(Marked(), 2, (torch.ones(2, WIDTH),))
    assert [name for name, _ in pipe.get_stage_module(0).named_parameters()] == [
        "embed.weight",
        "embed.bias",
    ]


def test_what_cannot_be_cut_says_so():
    with pytest.raises(ValueError, match=r"'layers\.9'.*near names: layers"):
        pippy.annotate_split_points(Net(), {"layers.9": pippy.SplitPoint.BEGINNING})
    with pytest.raises(ValueError, match=r"got none of them"):
        pippy.pipeline(Net(), 2, (torch.ones(2, WIDTH),))
