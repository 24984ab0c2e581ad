"""Weights that stages share, in one process: one parameter, whatever the schedule."""

import copy

import pytest
import torch
from plain_loop import plain_loop, same_bits
from tied_models import Block, builders, cross_entropy, language_model, names, words
from torch import nn

import pipert
from pipert.stages import Tied
from pipert.tied_weights.checksums import checksum
from pipert.tied_weights.tied import find_ties, merge_ties

pytestmark = pytest.mark.timeout(60)
MICROBATCHES = 4
EMBEDDING = "0.weight"  # the tied parameter, in all these models
TWO_DEVICES = ["cpu", "cpu:0"]  # names of one, which has all that torch compares of two


def make_pipe(stages, schedule="1f1b", **options):
    return pipert.Pipeline(
        stages,
        schedule=schedule,
        num_microbatches=MICROBATCHES,
        loss_fn=cross_entropy,
        **options,
    )


def cut(model, num_stages):
    return pipert.split(model, num_stages, balance="uniform")


def assert_close_gradients(pipe, model):
    """To the plain model's: the tied one to rounding, the others bit for bit."""
    expected = dict(model.named_parameters())
    found = dict(pipe.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        if name == EMBEDDING:
            torch.testing.assert_close(parameter.grad, expected[name].grad)
        else:
            assert same_bits(parameter.grad, expected[name].grad), name


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [False, True], ids=["two uses", "three uses"])
@pytest.mark.parametrize(
    ("schedule", "num_stages", "options"),
    [
        ("1f1b", 2, {}),
        ("1f1b", 4, {}),
        ("gpipe", 3, {}),
        ("zb_h1", 4, {}),
        ("interleaved_1f1b", 4, {"num_ranks": 2}),
        ("zb_v", 4, {"num_ranks": 2}),
        ("dualpipe", 2, {}),
        ("chimera", 2, {}),
        ("1f1b", 2, {"devices": TWO_DEVICES}),
        ("zb_h1", 4, {"devices": [*TWO_DEVICES, "cpu", "cpu:0"]}),
        ("dualpipe", 2, {"devices": TWO_DEVICES}),
        ("1f1b", 4, {"recompute": "all"}),
        ("1f1b", 2, {"stage_kind": "native"}),
        ("1f1b", 2, {"stage_kind": "native", "devices": TWO_DEVICES}),
    ],
)
def test_three_optimizer_steps_equal_the_plain_models(schedule, num_stages, options, reads):
    model = language_model(6, reads=reads)
    reference = copy.deepcopy(model)
    x, y = words(8)
    with make_pipe(cut(model, num_stages), schedule, **options) as pipe:
        ours = torch.optim.AdamW(pipe.parameters(), lr=0.05)
        theirs = torch.optim.AdamW(reference.parameters(), lr=0.05)
        for step in range(3):
            for optimizer in (ours, theirs):
                optimizer.zero_grad()
            for _ in range(2):  # gradients add up
                pipe.step(x, target=y)
                plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
            if step == 0 and pipe.schedule.placement.num_copies == 1:
                assert_close_gradients(pipe, reference)
            norm = pipe.clip_grad_norm_(0.5)
            expected = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            torch.testing.assert_close(norm, expected)
            ours.step()
            theirs.step()
        pipe.check_tied()
        state = pipe.state_dict()
    assert state.keys() == reference.state_dict().keys()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(state[name], value, msg=name)
    for name in names(model)[1:]:
        assert same_bits(state[name], state[EMBEDDING])
    language_model(6, reads=reads).load_state_dict(state)


def test_on_one_device_the_stages_keep_their_object():
    model = language_model(reads=True)
    with make_pipe(cut(model, 4)) as pipe:
        held = [p for s in pipe.stages.values() for p in s.parameters() if p is model[0].weight]
        assert len(held) == 3
        assert [p for p in pipe.parameters() if p is model[0].weight] == [model[0].weight]


def test_with_main_gradients_the_sums_are_in_float32():
    model = language_model().bfloat16()
    reference = copy.deepcopy(model).float()
    x, y = words(8)
    with make_pipe(cut(model, 2), main_grads=True) as pipe:
        for _ in range(2):
            pipe.step(x, target=y)
            plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
        main = model[0].weight.main_grad
        assert main.dtype == torch.float32
        torch.testing.assert_close(main, reference[0].weight.grad, atol=0.02, rtol=0.1)


# --- on several devices -------------------------------------------------------------------------


def test_on_two_devices_each_has_a_twin_of_its_own():
    model = language_model(reads=True)
    x, y = words(8)
    devices = [*TWO_DEVICES, "cpu:0", "cpu"]
    with make_pipe(cut(model, 4), devices=devices) as pipe:
        first, reader, last = (model[i].weight for i in (0, 3, 5))
        assert first is last
        assert reader is not first
        assert reader.data_ptr() != first.data_ptr()
        assert reader not in set(pipe.parameters())
        pipe.step(x, target=y)
        assert reader.grad is None
        with torch.no_grad():
            first.add_(1.0)
        assert same_bits(pipe.state_dict()["3.weight"], first.detach())
        pipe.step(x, target=y)
        assert same_bits(reader.detach(), first.detach())


def test_on_two_devices_main_gradients_end_in_the_owners():
    model = language_model()
    reference = copy.deepcopy(model)
    x, y = words(8)
    with make_pipe(cut(model, 2), devices=TWO_DEVICES, main_grads=True) as pipe:
        for _ in range(2):
            pipe.step(x, target=y)
            plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
        main = next(pipe.parameters()).main_grad
        torch.testing.assert_close(main, reference[0].weight.grad)
        pipe.zero_main_grads()
        assert not any(p.main_grad.any() for p in pipe.parameters())


def test_another_pipeline_of_the_same_stages_finds_the_tie_again():
    model = language_model()
    reference = copy.deepcopy(model)
    layers = [model[:3], model[3:]]
    x, y = words(8)
    with make_pipe(layers, devices=TWO_DEVICES) as pipe:
        assert model[5].weight is not model[0].weight
        pipe.step(x, target=y)
    with make_pipe(layers) as pipe:
        assert model[5].weight is model[0].weight
        pipe.step(x, target=y)
    for _ in range(2):
        plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
    torch.testing.assert_close(model[0].weight.grad, reference[0].weight.grad)


def test_one_module_on_two_devices_is_refused():
    tied = Block()
    message = r"stages 0 and 1 have one module with the weight 0\.1\.layer\.bias.*a module for each"
    with pytest.raises(ValueError, match=message):
        make_pipe(
            [nn.Sequential(nn.Embedding(13, 8), tied), nn.Sequential(tied)], devices=TWO_DEVICES
        )


# --- declared -----------------------------------------------------------------------------------


def untied_stages(uses):
    model = language_model(tied=False)
    stages = cut(model, 2)
    return pipert.Stages(
        builders(list(stages)), names=[list(s.state_dict()) for s in stages], tied=[Tied(uses)]
    ), model


@pytest.mark.parametrize("devices", [None, TWO_DEVICES])
def test_declared_weights_become_the_owners(devices):
    stages, model = untied_stages(((0, "0.weight"), (1, "5.weight")))
    reference = copy.deepcopy(model)
    reference[5].weight = reference[0].weight
    x, y = words(8)
    with make_pipe(stages, devices=devices) as pipe:
        assert (pipe.stages[1][-1].weight is pipe.stages[0][0].weight) == (devices is None)
        for _ in range(2):
            pipe.step(x, target=y)
            plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
        assert_close_gradients(pipe, reference)


@pytest.mark.parametrize(
    ("uses", "message"),
    [
        (((0, "0.weight"),), "must have two uses at least, got"),
        (((0, "0.weight"), (2, "5.weight")), "stages from 0 to 1, got 5.weight in stage 2"),
        (
            ((0, "0.weigth"), (1, "5.weight")),
            "has no parameter 0.weigth.*mean '0.weight'",
        ),
    ],
)
def test_what_can_not_be_tied_is_refused(uses, message):
    with pytest.raises(ValueError, match=message):
        untied_stages(uses)


def test_split_takes_the_names_of_what_is_tied():
    model = language_model(tied=False)
    reference = copy.deepcopy(model)
    reference[5].weight = reference[0].weight
    stages = pipert.split(model, 2, balance="uniform", tied=[("0.weight", "5.weight")])
    assert stages.tied == (Tied(((0, "0.weight"), (1, "5.weight"))),)
    x, y = words(8)
    with make_pipe(stages) as pipe:
        pipe.step(x, target=y)
        plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
        assert_close_gradients(pipe, reference)


@pytest.mark.parametrize(
    ("tied", "error", "message"),
    [
        ([("0.weight", "5.wieght")], ValueError, r"got '5.wieght', which no stage has: did you m"),
        ([("0.weight",)], ValueError, "two names at least"),
        (["0.weight"], TypeError, "groups of names of one parameter"),
        ("0.weight", TypeError, "groups of names of one parameter"),
    ],
)
def test_names_that_are_not_there_cannot_be_tied(tied, error, message):
    with pytest.raises(error, match=message):
        pipert.split(language_model(tied=False), 2, tied=tied)


def test_tied_weights_must_be_alike():
    stages, _ = untied_stages(((0, "0.weight"), (1, "5.weight")))
    stages = pipert.Stages(
        [stages[0], lambda: nn.Sequential(nn.Linear(8, 13).double())],
        names=[stages.names[0], ["0.weight", "0.bias"]],
        tied=[Tied(((0, "0.weight"), (1, "0.weight")))],
    )
    message = r"0.weight of stage 0 is float32\[13, 8\], 0.weight of stage 1 is float64\[13, 8\]"
    with pytest.raises(ValueError, match=message):
        make_pipe(stages)


def test_a_tied_weight_that_is_not_made_yet_is_refused():
    lazy = nn.LazyLinear(8)
    other = nn.LazyLinear(8)
    other.weight = lazy.weight
    with pytest.raises(ValueError, match=r"0\.weight is tied, and its module's first call makes"):
        make_pipe([lazy, other])


def test_an_lstm_runs_with_the_weight_that_it_is_given():
    layers = [nn.LSTM(8, 8), nn.LSTM(8, 8)]
    stages = [Named(str(i), layer) for i, layer in enumerate(layers)]
    tied = [Tied(((0, "0.weight_ih_l0"), (1, "1.weight_ih_l0")))]
    with pipert.Pipeline(
        pipert.Stages(stages, tied=tied),
        num_microbatches=2,
        loss_fn=lambda output: output.sum(),
    ) as pipe:
        weight = layers[0].weight_ih_l0
        assert layers[1]._flat_weights[0] is layers[1].weight_ih_l0 is weight
        pipe.step(torch.randn(4, 3, 8))
        assert weight.grad is not None


class Named(nn.Module):
    """A recurrent layer under a name, which hands on its outputs."""

    def __init__(self, name, layer):
        super().__init__()
        self.add_module(name, layer)
        self.name = name

    def forward(self, x):
        return self.get_submodule(self.name)(x)[0]


# --- finding them -------------------------------------------------------------------------------


def test_weights_are_found_under_all_their_names():
    model = language_model(reads=True)
    stages = cut(model, 4)
    assert stages.tied == (Tied(((0, "0.weight"), (1, "3.weight"), (3, "5.weight"))),)
    assert find_ties(list(stages), ["a.", "b.", "c.", "d."]) == [
        Tied(((0, "a.0.weight"), (1, "b.3.weight"), (3, "d.5.weight")))
    ]


def test_a_weight_that_one_stage_uses_twice_is_no_tie():
    model = language_model()
    assert pipert.Stages([model]).tied == ()


def test_ties_with_a_use_in_common_are_one():
    a, b, c, d = (0, "a"), (1, "b"), (2, "c"), (2, "d")
    assert merge_ties([Tied((b, c)), Tied((a, d))]) == (Tied((a, d)), Tied((b, c)))
    assert merge_ties([Tied((b, c)), Tied((a, d)), Tied((d, c))]) == (Tied((a, b, d, c)),)
    assert merge_ties([Tied((a, b)), Tied((a, b))]) == (Tied((a, b)),)


# --- state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [None, TWO_DEVICES])
@pytest.mark.parametrize("dropped", [None, 0, 1])
def test_any_of_its_names_is_enough_to_load_it(dropped, devices):
    model = language_model()
    state = {name: torch.randn_like(v) for name, v in model.state_dict().items()}
    first, last = names(model)
    state[first] = state[last] = torch.full((13, 8), 3.0)
    if dropped is not None:
        del state[names(model)[dropped]]
    with make_pipe(cut(model, 2), devices=devices) as pipe:
        pipe.load_state_dict(state)
        assert same_bits(next(pipe.parameters()).detach(), torch.full((13, 8), 3.0))
        assert same_bits(pipe.state_dict()[last], torch.full((13, 8), 3.0))


def test_a_state_without_any_of_its_names_is_refused():
    model = language_model()
    state = {n: v for n, v in model.state_dict().items() if n not in names(model)}
    with (
        make_pipe(cut(model, 2)) as pipe,
        pytest.raises(ValueError, match=r"lacks 0\.weight, 5\.w"),
    ):
        pipe.load_state_dict(state)


# --- checksums ----------------------------------------------------------------------------------


def test_checksums_tell_bits_and_places():
    torch.manual_seed(0)
    tensor = torch.randn(3, 50_000)  # of several parts
    same = checksum(tensor)
    assert checksum(tensor.t().contiguous().t()) == same
    for row, column, bits in ((0, 0, 1), (1, 32_767, 1 << 20), (2, 49_999, 1 << 30)):
        other = tensor.clone()
        other.view(torch.int32)[row, column] ^= bits
        assert checksum(other) != same
    assert checksum(tensor.flip(0)) != same
    assert checksum(torch.tensor(0.0)) != checksum(torch.tensor(-0.0))


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float64, torch.complex64])
def test_checksums_are_of_any_dtype(dtype):
    assert checksum(torch.ones(3).to(dtype)) != checksum(torch.zeros(3).to(dtype))
