"""print(stages): a line for each stage, skip edge and shared weight."""

import pytest
import torch
from torch import nn

import pipert
from pipert.balancing.stage_table import abbreviate
from pipert.stages import StageCosts, StageSpec, Tied, Value


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        ([], ""),
        (["embed"], "embed"),
        (["0", "1", "2"], "0-2"),
        (["embed", "layers.0", "layers.1", "layers.2", "norm"], "embed, layers.0-2, norm"),
        (["layers.3", "head"], "layers.3, head"),
        (["a.9", "a.10", "b.11", "b.12"], "a.9-10, b.11-12"),
        (["a.0", "a.2"], "a.0, a.2"),
        (["conv1", "conv2"], "conv1, conv2"),
        (["h.0.attn", "h.0.mlp"], "h.0.attn, h.0.mlp"),
    ],
)
def test_paths_that_count_up_are_one(paths, text):
    assert abbreviate(paths) == text


def test_stages_print_their_layers_parameters_and_bytes():
    stages = pipert.split(nn.Sequential(*(nn.Linear(16, 16) for _ in range(5))), 2)
    assert str(stages).splitlines() == [
        "stage  layers  parameters    bytes",
        "0      0-1            544  2.1 KiB",
        "1      2-4            816  3.2 KiB",
    ]


def test_costs_are_columns_of_their_own():
    costs = StageCosts(
        forward=[1e-3, 2e-3],
        input=[1e-3, 2e-3],
        weight=[5e-4, 0.1],
        bytes=[2048, 4],
        activation_bytes=[3 * 2**20, 10],
    )
    stages = pipert.Stages([nn.Linear(1, 1), nn.Linear(1, 1)], costs=costs)
    header, first, second = str(stages).splitlines()
    assert header.split() == ["stage", "layers", "parameters", "bytes", "time", "kept", "out"]
    assert first.split()[-6:] == ["2.5", "ms", "3.0", "MiB", "2.0", "KiB"]
    assert second.split()[-5:] == ["104", "ms", "10", "B", "-"]


def test_skip_edges_and_shared_weights_have_a_line_each():
    stages = pipert.Stages(
        [nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)],
        specs=[
            StageSpec((), ("skipped", "hidden_0"), ("x",), ("embed", "layers.0", "layers.1")),
            StageSpec(("hidden_0",), ("hidden_1",), (), ("layers.2",)),
            StageSpec(("skipped", "hidden_1"), (), (), ("head",)),
        ],
        values=[
            Value("skipped", 0, (2,), bytes=1024),
            Value("hidden_0", 0, (1,), bytes=512),
            Value("hidden_1", 1, (2,), bytes=512),
        ],
        tied=[Tied(((0, "embed.weight"), (2, "head.weight")))],
        names=[["embed.weight"], ["layers.2.weight"], ["head.weight"]],
        arguments=["x"],
    )
    assert str(stages).splitlines() == [
        "stage  layers             parameters  bytes      out",
        "0      embed, layers.0-1           6   24 B  1.5 KiB",
        "1      layers.2                    6   24 B    512 B",
        "2      head                        6   24 B        -",
        "skip 0 -> 2: skipped (1.0 KiB)",
        "tied: embed.weight (stage 0), head.weight (stage 2)",
    ]


def test_stages_that_are_still_to_be_built_print_what_they_will_have():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    specs = [pipert.LayerSpec(nn.Linear, 8, 8), pipert.LayerSpec(nn.Linear, 8, 8)]
    assert str(pipert.split(specs, 2)) == str(pipert.split(model, 2))
    unknown = pipert.Stages([lambda: nn.Linear(1, 1)], names=[["0.weight", "0.bias"]])
    assert str(unknown).splitlines()[1].split() == ["0", "0", "?", "?"]


def test_a_long_list_of_layers_loses_its_middle():
    names = [f"block_{letter}" for letter in "abcdefghij"]
    modules = nn.Sequential()
    for name in names:
        modules.add_module(name, nn.ReLU())
    line = str(pipert.split(modules, 1)).splitlines()[1]
    assert "block_a, block_b, block_c, ..., block_j" in line
    assert len(line) <= 80
