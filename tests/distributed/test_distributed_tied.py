"""Weights that stages in several processes share: one parameter, in as many places."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import torch
import torch.distributed as dist
from models import same, within
from plain_loop import plain_loop
from tied_models import (
    VOCABULARY,
    WIDTH,
    Block,
    builders,
    cross_entropy,
    language_model,
    names,
    words,
)
from torch import Tensor, nn
from torch.nn import functional

import pipert
from pipert.stages import Tied

MICROBATCHES = 4
EMBEDDING = "0.weight"  # the tied parameter, in all these models


def _pipe(stages: object, schedule: str = "1f1b", **options: object) -> pipert.Pipeline:
    default = {"group": pipert.init(), "timeout_s": 20, "loss_fn": cross_entropy}
    default["num_microbatches"] = MICROBATCHES
    return pipert.Pipeline(stages, schedule=schedule, **{**default, **options})


def _cut(model: nn.Sequential, num_stages: int | None = None) -> pipert.Stages:
    return pipert.split(model, num_stages or pipert.init().size(), balance="uniform")


def _tied(pipe: pipert.Pipeline) -> nn.Parameter | None:
    """The tied parameter, if a stage here uses it."""
    return dict(pipe.named_parameters()).get(EMBEDDING)


def _everywhere(value: Tensor | None) -> list[Tensor]:
    """What the ranks have that have any."""
    told: list[Tensor | None] = [None] * pipert.init().size()
    dist.all_gather_object(told, value)
    return [of for of in told if of is not None]


def _same_on_all(value: Tensor | None, count: int) -> Tensor:
    """Asserts that `count` ranks have it, to the bit."""
    told = _everywhere(value)
    assert len(told) == count
    for of in told[1:]:
        same(of, told[0], "on another rank")
    return told[0]


def _close_gradients(pipe: pipert.Pipeline, model: nn.Module) -> None:
    """To the plain model's: the tied one to rounding, the others bit for bit."""
    expected = dict(model.named_parameters())
    for name, parameter in pipe.named_parameters():
        if name == EMBEDDING:
            torch.testing.assert_close(parameter.grad, expected[name].grad)
        else:
            same(parameter.grad, expected[name].grad, name)


def _whole_state(pipe: pipert.Pipeline) -> dict[str, Tensor]:
    """Of all ranks; no name is on two of them."""
    told: list[dict[str, Tensor]] = [{} for _ in range(pipert.init().size())]
    dist.all_gather_object(told, pipe.state_dict())
    assert sum(map(len, told)) == len({name for of in told for name in of})
    return {name: value for of in told for name, value in of.items()}


def _train(
    schedule: str, num_stages: int, *, holders: int = 2, kind: str = "module", **model: bool
) -> None:
    """Three optimizer steps, beside the plain model's."""
    whole = language_model(6, **model)
    reference = copy.deepcopy(whole)
    x, y = words(8)
    options = {"num_ranks": pipert.init().size(), "stage_kind": kind}
    with _pipe(_cut(whole, num_stages), schedule, **options) as pipe:
        ours = torch.optim.AdamW(pipe.parameters(), lr=0.05)
        theirs = torch.optim.AdamW(reference.parameters(), lr=0.05)
        for _ in range(3):
            for optimizer in (ours, theirs):
                optimizer.zero_grad()
            pipe.step(x, target=y)
            plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
            tied = _tied(pipe)
            _same_on_all(None if tied is None else tied.grad, holders)
            norm = pipe.clip_grad_norm_(0.5)
            expected = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            torch.testing.assert_close(norm, expected)
            ours.step()
            theirs.step()
            pipe.check_tied()
        _same_on_all(None if tied is None else tied.detach(), holders)
        state = _whole_state(pipe)
    plain = language_model(6, **model)
    plain.load_state_dict(state)
    for (name, value), other in zip(
        plain.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, msg=name)


@pytest.mark.processes(2)
@pytest.mark.parametrize(
    ("schedule", "num_stages"),
    [("gpipe", 2), ("1f1b", 2), ("zb_h1", 2), ("interleaved_1f1b", 4), ("zb_interleaved", 4)],
)
def test_two_processes_train_one_embedding(schedule: str, num_stages: int) -> None:
    _train(schedule, num_stages)


@pytest.mark.processes(2)
def test_native_stages_train_one_embedding() -> None:
    _train("1f1b", 2, kind="native")


@pytest.mark.processes(2)
@pytest.mark.parametrize("schedule", ["zb_v", "dualpipe_v"])
def test_uses_that_a_placement_puts_on_one_rank_are_one_object(schedule: str) -> None:
    whole = language_model(6)
    with _pipe(_cut(whole, 4), schedule, num_ranks=2) as pipe:
        if pipert.init().rank() == 0:
            assert pipe.stages[0][0].weight is pipe.stages[3][-1].weight
    _train(schedule, 4, holders=1)


@pytest.mark.processes(3)
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_a_rank_between_that_has_no_use_of_it_is_left_alone(schedule: str) -> None:
    _train(schedule, 3)


@pytest.mark.processes(3)
@pytest.mark.parametrize(
    ("schedule", "num_stages", "holders"), [("1f1b", 3, 3), ("zb_h1", 3, 3), ("looped_bfs", 6, 2)]
)
def test_three_uses_in_several_processes_add_up(
    schedule: str, num_stages: int, holders: int
) -> None:
    """With six stages the last two uses are on one rank."""
    _train(schedule, num_stages, holders=holders, reads=True)


@pytest.mark.processes(4)
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_four_processes_train_one_embedding(schedule: str) -> None:
    _train(schedule, 4, holders=3, reads=True)


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", ["shm", "process_group"])
@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_of_several_steps_count_once(transport: str, to_none: bool) -> None:
    whole = language_model()
    reference = copy.deepcopy(whole)
    with _pipe(_cut(whole), transport=transport) as pipe:
        for _ in range(2):
            for seed in range(3):
                x, y = words(8, seed)
                pipe.step(x, target=y)
                plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
                _close_gradients(pipe, reference)
                _same_on_all(_tied(pipe).grad, 2)
            for model in (*pipe.stages.values(), reference):
                model.zero_grad(set_to_none=to_none)


@pytest.mark.processes(2)
def test_a_gradient_that_was_there_stays_the_same_tensor() -> None:
    x, y = words(8)
    with _pipe(_cut(language_model())) as pipe:
        pipe.step(x, target=y)
        before = [p.grad for p in pipe.parameters()]
        pipe.step(x, target=y)
        assert all(p.grad is g for p, g in zip(pipe.parameters(), before, strict=True))


@pytest.mark.processes(2)
def test_evaluation_leaves_gradients_alone() -> None:
    x, y = words(8)
    with _pipe(_cut(language_model())) as pipe:
        pipe.step(x, target=y)
        before = _tied(pipe).grad.clone()
        pipe.evaluate(x, target=y)
        pipe(x)
        same(_tied(pipe).grad, before)


@pytest.mark.processes(2)
def test_main_gradients_are_exchanged() -> None:
    whole = language_model().bfloat16()
    reference = copy.deepcopy(whole).float()
    with _pipe(_cut(whole), main_grads=True) as pipe:
        buffer = torch.zeros_like(_tied(pipe), dtype=torch.float32)
        _tied(pipe).main_grad = buffer
        for _ in range(2):
            reference.zero_grad()
            for seed in range(2):
                x, y = words(8, seed)
                pipe.step(x, target=y)
                plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
                assert _tied(pipe).grad is None
                assert _tied(pipe).main_grad is buffer
                _same_on_all(buffer, 2)
            expected = reference[0].weight.grad
            torch.testing.assert_close(buffer, expected, atol=0.02, rtol=0.1)
            norm = pipe.clip_grad_norm_(1e9)
            _same_on_all(norm, 2)
            pipe.zero_main_grads()


# --- who has a gradient ---------------------------------------------------------------------------


class Embedding(nn.Module):
    """An embedding, or where it isn't `used` a constant, which still has the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(VOCABULARY, WIDTH))
        self.bias = nn.Parameter(torch.randn(WIDTH))
        self.used = True

    def forward(self, x: Tensor) -> Tensor:
        table = self.weight if self.used else torch.ones(VOCABULARY, WIDTH)
        return functional.embedding(x, table) + self.bias


class Head(Embedding):
    """The last layer, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        table = self.weight if self.used else torch.ones(VOCABULARY, WIDTH)
        return functional.linear(x + self.bias, table)


def _ends() -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential(Embedding(), nn.Linear(WIDTH, WIDTH), Head())
    model[2].weight = model[0].weight
    return model


@pytest.mark.processes(2)
@pytest.mark.parametrize("used", [(True, False), (False, True), (False, False)])
def test_a_stage_without_a_gradient_gets_the_others(used: tuple[bool, bool]) -> None:
    whole = _ends()
    reference = copy.deepcopy(whole)
    for model in (whole, reference):
        model[0].used, model[2].used = used
    x, y = words(8)
    with _pipe(_cut(whole)) as pipe:
        for _ in range(2):
            pipe.step(x, target=y)
            plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
            _close_gradients(pipe, reference)
            if any(used):
                _same_on_all(_tied(pipe).grad, 2)
            else:
                assert _tied(pipe).grad is None


@pytest.mark.processes(2)
def test_a_frozen_weight_has_no_gradient_until_it_is_trained() -> None:
    whole = _ends()
    whole[0].weight.requires_grad_(False)
    reference = copy.deepcopy(whole)
    x, y = words(8)
    with _pipe(_cut(whole)) as pipe:
        pipe.step(x, target=y)
        assert _tied(pipe).grad is None
        _tied(pipe).requires_grad_(True)
        for p in pipe.parameters():
            p.grad = None
        pipe.step(x, target=y)
        reference[0].weight.requires_grad_(True)
        plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
        _close_gradients(pipe, reference)


@pytest.mark.processes(2)
def test_sparse_gradients_are_refused() -> None:
    whole = language_model()
    whole[0].sparse = True
    x, y = words(8)
    with _pipe(_cut(whole)) as pipe:
        with (
            within(2.0),
            pytest.raises(
                (ValueError, pipert.PipelineError),
                match=r"the gradient of 0\.weight is sparse.*dense",
            ),
        ):
            pipe.step(x, target=y)
        whole[0].sparse = False
        pipe.step(x, target=y)


class Wide(nn.Module):
    """A weight whose gradient goes in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2**22))
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.sum(1) * torch.arange(1.0, 4.0)
        return self.layer(x) + rows.sum() / self.weight.numel()


def _total(output: Tensor) -> Tensor:
    return output.sum()


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", ["shm", "process_group"])
def test_a_large_gradient_goes_in_parts(transport: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(Wide(), Wide())
    model[1].weight = model[0].weight
    reference = copy.deepcopy(model)
    x = torch.randn(4, WIDTH)
    options = {"loss_fn": _total, "num_microbatches": 1}
    with _pipe(_cut(model), transport=transport, **options) as pipe:
        for _ in range(2):
            pipe.step(x)
            plain_loop(reference, x, x, 1, lambda output, _: _total(output))
            _close_gradients(pipe, reference)
        pipe.check_tied()


# --- declared -------------------------------------------------------------------------------------


def _apart(seed: int, uses: tuple[tuple[int, str], ...], **options: object) -> pipert.Pipeline:
    """Stages that are built where they run, from seeds of their own."""
    plain = language_model(tied=False)
    stages = _cut(plain, 2)
    torch.manual_seed(seed)
    for p in plain.parameters():
        nn.init.normal_(p)
    named = [list(stage.state_dict()) for stage in stages]
    given = pipert.Stages(builders(list(stages)), names=named, tied=[Tied(uses)])
    return _pipe(given, **options)


@pytest.mark.processes(2)
def test_declared_ties_of_stages_that_are_built_apart_start_as_the_owners() -> None:
    rank = pipert.init().rank()
    with _apart(rank, ((0, "0.weight"), (1, "5.weight"))) as pipe:
        pipe.check_tied()
        reference = language_model()
        reference.load_state_dict(_whole_state(pipe))
        x, y = words(8)
        pipe.step(x, target=y)
        plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
        _close_gradients(pipe, reference)
        _same_on_all(_tied(pipe).grad, 2)


def _specs() -> list[object]:
    """The language model of 4 blocks as DeepSpeed's users have it, each layer still to be built."""
    table = (nn.Embedding, VOCABULARY, WIDTH)
    head = pipert.TiedLayerSpec(
        "words", *table, forward_fn=lambda embed, x: functional.linear(x, embed.weight)
    )
    return [pipert.TiedLayerSpec("words", *table), *[pipert.LayerSpec(Block)] * 4, head]


@pytest.mark.processes(2)
@pytest.mark.parametrize(
    ("schedule", "num_stages", "holders"),
    [("1f1b", 2, 2), ("interleaved_1f1b", 4, 2), ("zb_v", 4, 1)],
)
def test_layers_of_one_key_that_ranks_build_apart_train_as_one(
    schedule: str, num_stages: int, holders: int
) -> None:
    """In a V both are on rank 0."""
    stages = pipert.split(_specs(), num_stages, balance="uniform")
    torch.manual_seed(pipert.init().rank())
    with _pipe(stages, schedule, num_ranks=2) as pipe:
        reference = language_model()
        reference.load_state_dict(_whole_state(pipe))
        ours = torch.optim.AdamW(pipe.parameters(), lr=0.05)
        theirs = torch.optim.AdamW(reference.parameters(), lr=0.05)
        for step in range(2):
            x, y = words(8, seed=step)
            ours.zero_grad()
            theirs.zero_grad()
            pipe.step(x, target=y)
            plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
            expected = dict(reference.named_parameters())
            for name, parameter in pipe.named_parameters():
                torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name)
            tied = _tied(pipe)
            _same_on_all(None if tied is None else tied.grad, holders)
            ours.step()
            theirs.step()
        pipe.check_tied()
        state = _whole_state(pipe)
        assert pipert.init().rank() == 0 or not {"0.weight", "5.weight"} & pipe.state_dict().keys()
    assert state.keys() == reference.state_dict().keys()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(state[name], value, msg=name)


@pytest.mark.processes(2)
def test_tied_weights_of_different_shapes_are_refused_everywhere() -> None:
    message = (
        r"0\.weight of stage 0 is float32\[13, 8\], 4\.norm\.weight of stage 1 is float32\[8\]"
    )
    with within(2.0), pytest.raises((ValueError, pipert.PipelineError), match=message):
        _apart(0, ((0, "0.weight"), (1, "4.norm.weight")))


@pytest.mark.processes(2)
def test_a_tied_weight_that_a_builder_did_not_make_is_named_everywhere() -> None:
    stages = pipert.Stages(
        builders([nn.Linear(4, 4), nn.Linear(4, 4)]),
        names=[["0.weight"], ["1.weight"]],
        tied=[Tied(((0, "0.weight"), (1, "1.weight")))],
    )
    with (
        within(2.0),
        pytest.raises((ValueError, pipert.PipelineError), match=r"no parameter \d\.w"),
    ):
        _pipe(stages)


# --- two copies of the model ----------------------------------------------------------------------


@pytest.mark.processes(2)
@pytest.mark.parametrize("schedule", ["dualpipe", "chimera"])
def test_two_copies_of_the_model_share_what_each_rank_has_both_uses_of(schedule: str) -> None:
    whole = language_model()
    reference = copy.deepcopy(whole)
    x, y = words(8)
    with _pipe(_cut(whole), schedule) as pipe:
        ours = torch.optim.SGD(pipe.parameters(), lr=0.1)
        theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
        for _ in range(2):
            ours.zero_grad()
            theirs.zero_grad()
            pipe.step(x, target=y)
            plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
            torch.testing.assert_close(_tied(pipe).grad, reference[0].weight.grad)
            _same_on_all(_tied(pipe).grad, 2)
            ours.step()
            theirs.step()
        pipe.check_tied()


@pytest.mark.processes(4)
def test_two_copies_whose_uses_are_on_different_ranks_are_refused() -> None:
    with _pipe(_cut(language_model(6)), "dualpipe", num_microbatches=8) as pipe:
        pipe.step(*words(8)[:1], target=words(8)[1])
    message = "stages 0 and 2 share the weight 0.weight, are in different processes, and the"
    with within(2.0), pytest.raises((ValueError, pipert.PipelineError), match=message):
        _pipe(_cut(language_model(6, reads=True)), "dualpipe", num_microbatches=8)


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.processes(3)
def test_it_is_saved_once_and_loads_into_the_plain_model() -> None:
    whole = language_model(6, reads=True)
    with _pipe(_cut(whole)) as pipe:
        state = _whole_state(pipe)
        assert set(names(whole)) <= state.keys()
        assert pipert.init().rank() == 0 or not set(names(whole)) & pipe.state_dict().keys()
        language_model(6, reads=True).load_state_dict(state)
        assert [name for name, _ in pipe.named_parameters()].count(EMBEDDING) == 1
        assert set(_everywhere_named(pipe)) == set(dict(whole.named_parameters()))


def _everywhere_named(pipe: pipert.Pipeline) -> set[str]:
    told: list[list[str]] = [[] for _ in range(pipert.init().size())]
    dist.all_gather_object(told, [name for name, _ in pipe.named_parameters()])
    return {name for of in told for name in of}


@pytest.mark.processes(2)
@pytest.mark.parametrize("given", ["own", "whole", "first name", "last name"])
def test_all_who_use_it_load_it(given: str) -> None:
    torch.manual_seed(7)
    whole = language_model()
    with _pipe(_cut(whole)) as pipe:
        state = pipe.state_dict() if given == "own" else _whole_state(pipe)
        state = {name: torch.randn_like(value) for name, value in state.items()}
        first, last = names(whole)
        for name in (first, last):
            if name in state:
                state[name] = torch.full_like(state[name], 3.0)
        dropped = {"first name": last, "last name": first}.get(given)
        state.pop(dropped, None)
        pipe.load_state_dict(state)
        same(_tied(pipe).detach(), torch.full((VOCABULARY, WIDTH), 3.0))
        pipe.check_tied()
        for name, value in pipe.state_dict().items():
            if name not in (first, last):
                same(value, state[name], name)


@pytest.mark.processes(2)
def test_a_state_that_does_not_fit_one_rank_is_loaded_on_none() -> None:
    with _pipe(_cut(language_model())) as pipe:
        before = {name: value.clone() for name, value in pipe.state_dict().items()}
        state = {name: value + 1 for name, value in _whole_state(pipe).items()}
        if pipert.init().rank() == 1:
            state.pop("4.layer.weight")
        with (
            within(2.0),
            pytest.raises((ValueError, pipert.PipelineError), match=r"lacks 4\.layer\.weight"),
        ):
            pipe.load_state_dict(state)
        for name, value in pipe.state_dict().items():
            same(value, before[name], name)
        pipe.check_tied()
        x, y = words(8)
        pipe.step(x, target=y)


@pytest.mark.processes(3)
def test_weights_that_differ_are_named() -> None:
    with _pipe(_cut(language_model(6, reads=True))) as pipe:
        pipe.check_tied()
        if pipert.init().rank() == 2:
            with torch.no_grad():
                _tied(pipe)[4, 2] += 1e-6
        message = "tied weights differ: 0.weight on rank 2 from its owner's on rank 0"
        with pytest.raises(ValueError, match=message):
            pipe.check_tied()


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.processes(3)
@pytest.mark.parametrize("odd", [0, 1, 2])
def test_a_failed_step_leaves_the_gradients_of_others_as_they_were(odd: int) -> None:
    whole = language_model(6, reads=True)
    reference = copy.deepcopy(whole)
    x, y = words(8)
    with _pipe(_cut(whole)) as pipe:
        pipe.step(x, target=y)
        before = _tied(pipe).grad.clone()

        def fail(*_: object) -> None:
            raise RuntimeError("not today")

        rank = pipert.init().rank()
        stage = next(iter(pipe.stages.values()))
        if rank == odd:
            hook = stage.register_forward_pre_hook(fail)
        with within(3.0), pytest.raises((RuntimeError, pipert.PipelineError), match="not today"):
            pipe.step(x, target=y)
        if rank == odd:
            hook.remove()
        if rank > 0:
            same(_tied(pipe).grad, before)
        for p in pipe.parameters():
            p.grad = None
        pipe.step(x, target=y)
        plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
        _close_gradients(pipe, reference)
        _same_on_all(_tied(pipe).grad, 3)


def _at_last_gradient(parameter: nn.Parameter, call: object) -> None:
    """Has the parameter's stage make the call once it has all its gradients of a step."""
    seen: list[nn.Parameter] = []

    def hook(of: nn.Parameter) -> None:
        seen.append(of)
        if len(seen) == MICROBATCHES:
            call()

    parameter.register_post_accumulate_grad_hook(hook)


@pytest.mark.processes(2)
def test_who_waits_for_a_gradient_says_for_whose_when_the_time_is_up() -> None:
    """Rank 0, the owner, comes when rank 1 has given up."""
    store = dist.distributed_c10d._get_default_store()
    x, y = words(8)
    with _pipe(_cut(language_model()), timeout_s=1.0) as pipe:
        if pipert.init().rank() == 0:
            _at_last_gradient(_tied(pipe), lambda: store.wait(["rank 1 gave up"]))
            with pytest.raises(pipert.PipelineError, match="no progress for 1 s"):
                pipe.step(x, target=y)
        else:
            message = "is done and waits for rank 0, which shares the weight 0.weight"
            with within(3.0), pytest.raises(pipert.PipelineError, match=message):
                pipe.step(x, target=y)
            store.set("rank 1 gave up", "")


@pytest.mark.processes(2, dies=(0,))
def test_the_death_of_the_owner_is_told_to_those_who_wait_for_it() -> None:
    x, y = words(8)
    with _pipe(_cut(language_model())) as pipe:
        if pipert.init().rank() == 0:
            _at_last_gradient(_tied(pipe), lambda: os.kill(os.getpid(), signal.SIGKILL))
        with within(5.0), pytest.raises(pipert.PipelineError):
            pipe.step(x, target=y)


@pytest.mark.processes(2)
def test_another_schedule_goes_on_with_the_same_weights() -> None:
    whole = language_model()
    reference = copy.deepcopy(whole)
    x, y = words(8)
    with _pipe(_cut(whole), "gpipe") as pipe:
        pipe.step(x, target=y)
        plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
        pipe.reschedule("zb_h1")
        pipe.step(x, target=y)
        plain_loop(reference, x, y, MICROBATCHES, cross_entropy)
        _close_gradients(pipe, reference)
        _same_on_all(_tied(pipe).grad, 2)


@pytest.mark.processes(2)
@pytest.mark.parametrize("apart", [False, True], ids=["objects", "built apart"])
def test_a_transformers_model_keeps_its_embedding_and_head_one(apart: bool) -> None:
    pytest.importorskip("transformers", reason="transformers isn't installed")
    from model_matrix import batches_of, plain_gradients
    from toy_models import TOY_MODELS

    from pipert.integrations.transformers import split_by_plan

    toy = TOY_MODELS["gpt2"]
    batches = batches_of(toy)
    stages = split_by_plan(toy.make(), at=toy.cuts[2], example_kwargs=batches[0])
    [tied] = stages.tied
    if apart:
        stages = pipert.Stages(
            builders(list(stages)),
            specs=stages.specs,
            values=stages.values,
            tied=stages.tied,
            arguments=stages.arguments,
            names=stages.names,
        )
    with _pipe(stages, num_microbatches=len(batches), loss_fn=lambda output: output.loss) as pipe:
        pipe.step(microbatches=batches)
        pipe.check_tied()
        expected = plain_gradients(toy, batches)
        name = tied.uses[0][1]
        found = {n: p.grad for n, p in pipe.named_parameters() if p.grad is not None}
        assert name in found
        torch.testing.assert_close(found.pop(name), expected[name])
        for n, gradient in found.items():
            same(gradient, expected[n], n)
