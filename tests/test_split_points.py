"""Where to cut: `at`, marks on modules, `pipe_split()` in forward, or the number of stages."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed import pipelining
from torch.distributed.pipelining._IR import annotate_split_points as torch_annotate_split_points

import pipert


class Net(nn.Module):
    def __init__(self, inner=lambda: nn.Linear(4, 4)):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList([inner() for _ in range(4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def layers_of(stages):
    return [spec.layers for spec in stages.specs]


def split(model, *args, **options):
    return pipert.split(model, *args, example_args=(torch.randn(3, 4),), by="trace", **options)


IN_THE_MIDDLE = [
    ("embed", "layers.0", "layers.1"),
    ("layers.2", "layers.3", "head"),
]


def test_at_and_pipeline_cuts_begin_stages():
    assert layers_of(split(Net(), at=["layers.2"])) == IN_THE_MIDDLE
    assert layers_of(split(Net(), pipeline_cuts=["layers.2"])) == IN_THE_MIDDLE
    with pytest.raises(ValueError, match="expected at or pipeline_cuts, which mean the same"):
        split(Net(), at=["layers.2"], pipeline_cuts=["layers.2"])


@pytest.mark.parametrize("annotate", [pipert.annotate_split_points, torch_annotate_split_points])
@pytest.mark.parametrize(
    ("path", "point"),
    [("layers.2", pipert.SplitPoint.BEGINNING), ("layers.1", pipert.SplitPoint.END)],
)
def test_marks_cut_before_or_behind_a_module(annotate, path, point):
    model = Net()
    annotate(model, {path: point})
    assert layers_of(split(model)) == IN_THE_MIDDLE
    assert layers_of(split(copy.deepcopy(model))) == IN_THE_MIDDLE


def test_both_ends_of_a_module_may_be_marked():
    model = Net()
    pipert.annotate_split_points(model, {"layers.1": pipert.SplitPoint.BEGINNING})
    pipert.annotate_split_points(model, {"layers.1": pipert.SplitPoint.END})
    expected = [("embed", "layers.0"), ("layers.1",), ("layers.2", "layers.3", "head")]
    assert layers_of(split(model)) == expected


def test_marks_are_those_of_torch():
    assert pipert.SplitPoint is pipelining.SplitPoint


def test_marks_that_fit_nothing_are_refused():
    model = Net()
    with pytest.raises(ValueError, match=r"got 'layers\.7', which is none; near names: layers"):
        pipert.annotate_split_points(model, {"layers.7": pipert.SplitPoint.END})
    with pytest.raises(TypeError, match=r"expected SplitPoint\.BEGINNING or"):
        pipert.annotate_split_points(model, {"layers.1": "end"})
    pipert.annotate_split_points(model, {"layers.1": pipert.SplitPoint.END})
    with pytest.raises(ValueError, match="from at or from annotate_split_points, got both"):
        split(model, at=["head"])


class Splits(Net):
    def forward(self, x):
        x = self.embed(x)
        for i, layer in enumerate(self.layers):
            if i == 2:
                self.split()
            x = layer(x)
        return self.head(x)

    def split(self):
        pipert.pipe_split()


class SplitsAsTorch(Splits):
    def split(self):
        pipelining.pipe_split()


@pytest.mark.parametrize("kind", [Splits, SplitsAsTorch])
def test_pipe_split_in_forward_begins_a_stage(kind):
    model = kind()
    assert layers_of(split(model)) == IN_THE_MIDDLE
    assert layers_of(split(model, 2)) == IN_THE_MIDDLE
    assert model(torch.ones(1, 4)).shape == (1, 2)
    with pytest.raises(ValueError, match="make 2 stages, got num_stages=3"):
        split(model, 3)


def test_pipe_split_deep_inside_opens_the_modules_around_it():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Splits()
            self.tail = nn.Linear(2, 2)

        def forward(self, x):
            return self.tail(self.body(x))

    assert layers_of(split(Outer())) == [
        ("body.embed", "body.layers.0", "body.layers.1"),
        ("body.layers.2", "body.layers.3", "body.head", "tail"),
    ]


def test_num_stages_cuts_between_the_entries_of_the_models_lists():
    model = Net(lambda: nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 4)))
    layers = layers_of(split(model, 3))
    assert layers == [("embed", "layers.0"), ("layers.1", "layers.2"), ("layers.3", "head")]
    assert layers_of(split(model, 3, balance=[1, 4, 1]))[1] == tuple(
        f"layers.{i}" for i in range(4)
    )
    assert [len(layers) for layers in layers_of(split(model, 3, balance="uniform"))] == [2, 2, 2]


def test_num_stages_and_at_must_agree():
    assert len(split(Net(), 2, at=["layers.2"])) == 2
    with pytest.raises(ValueError, match="make 2 stages, got num_stages=4"):
        split(Net(), 4, at=["layers.2"])


def test_without_any_cut_the_message_lists_the_ways():
    with pytest.raises(
        ValueError, match="expected num_stages, at, annotate_split_points or a pipe"
    ):
        split(Net())
