"""Stages in several processes that hand values to any later stage: the plain loop's bits."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from models import limited_files, same, same_everywhere, same_gradients, within
from test_split_trace import UNet
from torch import Tensor, nn
from torch.nn import functional
from wired_stages import random_stages, u_net, unpartitioned, wired_loop

import pipert
from pipert.stages import Stages, StageSpec, Value

MICROBATCHES = 4
mse = functional.mse_loss


def _data(rows: int, width: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows, width, generator=generator), torch.randn(
        rows, width, generator=generator
    )


def _pipe(stages: object, schedule: str = "1f1b", **options: object) -> pipert.Pipeline:
    group = pipert.init()
    default = {"num_ranks": group.size(), "num_microbatches": MICROBATCHES, "loss_fn": mse}
    return pipert.Pipeline(
        stages, schedule=schedule, group=group, timeout_s=20, **{**default, **options}
    )


def _has_losses(pipe: pipert.Pipeline) -> bool:
    """Whether a copy of the model ends here."""
    num_stages = pipe.schedule.placement.stages_per_copy
    return any(index % num_stages == num_stages - 1 for index in pipe.stages)


def _equals_plain_loop(
    stages: Stages, schedule: str, rows: int = 2, steps: int = 2, **options: object
) -> None:
    """Steps of about so many rows a microbatch, and an evaluation after each."""
    reference = unpartitioned(stages)
    with _pipe(stages, schedule, **options) as pipe:
        x, y = _data(rows * pipe.schedule.num_microbatches + 1)
        for _ in range(steps):
            losses = wired_loop(reference, pipe.schedule, x, y)
            expected = losses if _has_losses(pipe) else None
            same(pipe.step(x=x, target=y).losses, expected, "losses")
            same_gradients(pipe, reference)
            same(pipe.evaluate(x=x, target=y).losses, expected, "losses of an evaluation")


@pytest.mark.processes(3)
@pytest.mark.parametrize("transport", ["shm", "process_group"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1"])
def test_a_value_passes_over_a_process(schedule: str, transport: str) -> None:
    _equals_plain_loop(u_net(), schedule, transport=transport)


@pytest.mark.processes(3)
def test_native_stages_pass_values_over_a_process() -> None:
    _equals_plain_loop(u_net(), "zb_h1", stage_kind="native")


@pytest.mark.processes(3)
def test_values_pass_over_a_process_that_computes_its_forwards_again() -> None:
    _equals_plain_loop(u_net(), "1f1b", recompute="all")


@pytest.mark.processes(3)
@pytest.mark.parametrize(
    ("schedule", "num_stages"),
    [("1f1b", 3), ("zb_h1", 3), ("interleaved_1f1b", 6), ("zb_interleaved", 6), ("zb_v", 6)],
)
def test_any_stages_run_in_three_processes(schedule: str, num_stages: int) -> None:
    for seed in range(6):
        microbatches = 6 if "interleaved" in schedule else 4
        _equals_plain_loop(random_stages(seed, num_stages), schedule, num_microbatches=microbatches)


@pytest.mark.processes(4)
@pytest.mark.parametrize(
    ("schedule", "num_stages"),
    [("1f1b", 4), ("zb_h1", 4), ("interleaved_1f1b", 8), ("dualpipe_v", 8), ("dualpipe", 4)],
)
def test_any_stages_run_in_four_processes(schedule: str, num_stages: int) -> None:
    for seed in range(20, 24):
        _equals_plain_loop(random_stages(seed, num_stages), schedule, num_microbatches=8)


@pytest.mark.processes(4)
@pytest.mark.parametrize("transport", ["shm", "process_group"])
def test_any_stages_run_over_any_transport(transport: str) -> None:
    for seed in range(40, 44):
        _equals_plain_loop(random_stages(seed, 4), "zb_h1", transport=transport)


@pytest.mark.processes(3)
@pytest.mark.parametrize(("schedule", "num_stages"), [("interleaved_1f1b", 6), ("zb_v", 6)])
def test_values_that_find_no_room_in_shared_memory_arrive_all_the_same(
    schedule: str, num_stages: int
) -> None:
    """Sends don't wait: ranks that would do so wait for each other here (docs/prover.md)."""
    stages = random_stages(3, num_stages)
    with limited_files(1 << 19):
        _equals_plain_loop(
            stages, schedule, rows=20_000, steps=1, transport="shm", num_microbatches=6
        )


# --- messages without tensors ---------------------------------------------------------------


class Call(nn.Module):
    """A function, and a layer so that there is something to train."""

    def __init__(self, index: int, call: object) -> None:
        super().__init__()
        self.name = f"stage{index}"
        self.add_module(self.name, nn.Linear(8, 8))
        self.call = call

    def forward(self, *values: object, **arguments: object) -> object:
        return self.call(getattr(self, self.name), *values, **arguments)


def _towers(fails: object = None) -> Stages:
    """Two that know nothing of each other, and a stage that puts them together."""

    def together(layer: nn.Module, one: Tensor, other: Tensor) -> Tensor:
        if fails is not None:
            fails()
        return layer(one * other)

    torch.manual_seed(0)
    return Stages(
        [
            Call(0, lambda layer, x: (layer(x),)),
            Call(1, lambda layer, x: (layer(x).tanh(),)),
            Call(2, together),
        ],
        specs=[
            StageSpec(outputs=("one",), arguments=("x",)),
            StageSpec(outputs=("other",), arguments=("x",)),
            StageSpec(inputs=("one", "other")),
        ],
        values=[Value("one", 0, (2,)), Value("other", 1, (2,))],
        arguments=["x"],
    )


@pytest.mark.processes(3)
@pytest.mark.parametrize("transport", ["shm", "process_group"])
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_neighbours_that_hand_each_other_nothing_run(schedule: str, transport: str) -> None:
    _equals_plain_loop(_towers(), schedule, transport=transport)


# --- traced models ---------------------------------------------------------------------------


@pytest.mark.processes(3)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1"])
def test_a_traced_u_net_trains_in_three_processes(schedule: str) -> None:
    torch.manual_seed(0)
    model = UNet()
    reference = copy.deepcopy(model)
    x, y = _data(8, 6)
    stages = pipert.split(model, at=["down.2", "up.1"], example_args=(x[:2],), by="trace")
    assert stages.skip_edges
    with _pipe(stages, schedule) as pipe:
        for _ in range(2):
            for piece, target in zip(x.chunk(4), y.chunk(4), strict=True):
                (mse(reference(piece), target) / 4).backward()
            pipe.step(x, target=y)
            same_gradients(pipe, reference)


class Translator(nn.Module):
    """An encoder, and a decoder that reads what it made in each of its layers; words are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.encoder = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.decoder = nn.ModuleList([nn.Bilinear(8, 8, 8) for _ in range(3)])
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, source: Tensor, words: Tensor) -> Tensor:
        memory = self.words(source)
        for layer in self.encoder:
            memory = layer(memory).tanh()
        hidden = self.words(words)
        for layer in self.decoder:
            hidden = hidden + layer(hidden, memory).tanh()
        return self.head(hidden)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


@pytest.mark.processes(3)
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_a_traced_encoder_and_decoder_train_in_three_processes(schedule: str) -> None:
    """The tied weight's gradient is added up in another order, so it is equal to rounding."""
    torch.manual_seed(0)
    model = Translator()
    reference = copy.deepcopy(model)
    source, words, target = torch.randint(0, 11, (3, 8, 5)).unbind()
    at = ["decoder.0", "decoder.2"]
    stages = pipert.split(model, at=at, example_args=(source[:2], words[:2]), by="trace")
    assert stages.tied
    assert [(edge.maker, edge.reader) for edge in stages.skip_edges] == [(0, 2)]
    with _pipe(stages, schedule, loss_fn=_cross_entropy) as pipe:
        losses = []
        for pieces in zip(source.chunk(4), words.chunk(4), target.chunk(4), strict=True):
            loss = _cross_entropy(reference(*pieces[:2]), pieces[2])
            (loss / 4).backward()
            losses.append(loss.detach())
        result = pipe.step(source, words, target=target)
        same(result.losses, torch.stack(losses) if _has_losses(pipe) else None, "losses")
        expected = dict(reference.named_parameters())
        for name, parameter in pipe.named_parameters():
            if name == "words.weight":
                torch.testing.assert_close(parameter.grad, expected[name].grad)
            else:
                same(parameter.grad, expected[name].grad, name)


# --- messages --------------------------------------------------------------------------------


@pytest.mark.processes(3)
def test_messages_of_an_edge_are_as_many_as_ranks_read() -> None:
    with _pipe(u_net()) as pipe:
        x, y = _data(8)
        pipe.step(x=x, target=y)
        trace = pipe.trace(all_ranks=True)
    sent: dict[tuple[str, int, int], int] = {}
    for event in trace.events:
        if event.kind == "send":
            key = (event.message.kind, event.rank, event.peer)
            sent[key] = sent.get(key, 0) + 1
    same_everywhere(sorted(sent.items()))
    edges = [("activation", 0, 1), ("activation", 0, 2), ("activation", 1, 2)]
    edges += [("gradient", to, source) for _, source, to in edges]
    assert sent == dict.fromkeys(edges, MICROBATCHES)


# --- what goes wrong -------------------------------------------------------------------------


@pytest.mark.processes(3)
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_a_reader_that_fails_is_told_everywhere(schedule: str) -> None:
    broken = True

    def fails() -> None:
        if broken:
            raise RuntimeError("no")

    stages = _towers(fails)
    reference = unpartitioned(stages)
    x, y = _data(8)
    with _pipe(stages, schedule) as pipe:
        for _ in range(2):
            broken = True
            with within(5.0), pytest.raises(pipert.PipelineError) as caught:
                pipe.step(x=x, target=y)
            assert (caught.value.rank, caught.value.stage) == (2, 2)
            assert re.search(r"stage 2 got one \(float32\[2, 8\]\) from stage 0", str(caught.value))
            broken = False
            for model in (*pipe.stages.values(), reference):
                model.zero_grad()
            wired_loop(reference, pipe.schedule, x, y)
            pipe.step(x=x, target=y)
            same_gradients(pipe, reference)


def _two(
    value: str = "a", differentiable: bool = True, reads: tuple[str, str] = ("a", "b")
) -> Stages:
    return Stages(
        [nn.Linear(8, 8), nn.Linear(8, 8)],
        specs=[StageSpec(outputs=(value, "b"), arguments=("input",)), StageSpec(inputs=reads)],
        values=[Value(value, 0, (1,), differentiable), Value("b", 0, (1,))],
        arguments=["input"],
    )


_OTHERS = {
    "stages.values is [[...]] on rank 0 and None on rank 1": lambda: [nn.Linear(8, 8)] * 2,
    "stages.values[0][0] is a on rank 0 and c on rank 1": lambda: _two("c", reads=("c", "b")),
    "stages.values[0][3] is True on rank 0 and False on rank 1": lambda: _two(differentiable=False),
    "stages.specs[1][0][0] is a on rank 0 and b on rank 1": lambda: _two(reads=("b", "a")),
}


@pytest.mark.processes(2)
@pytest.mark.parametrize("difference", _OTHERS)
def test_values_that_differ_between_ranks_are_a_value_error_everywhere(difference: str) -> None:
    stages = _two() if pipert.init().rank() == 0 else _OTHERS[difference]()
    words = re.escape(difference).replace(r"\.\.\.", ".*")
    with (
        within(5.0),
        pytest.raises(ValueError, match=f"ranks were given different arguments: {words}"),
    ):
        _pipe(stages)
