"""Pipeline's arguments, results, names and reports, in one process."""

import copy
import gc
import weakref
from collections import namedtuple
from itertools import pairwise

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, same_bits, twins
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


@pytest.fixture
def pipe():
    with pipert.Pipeline(pipert.split(mlp(4), 2), num_microbatches=4, loss_fn=mse) as pipeline:
        yield pipeline


# --- arguments ----------------------------------------------------------------------------------


def test_the_default_is_1f1b_with_one_rank_for_each_stage(pipe):
    assert pipe.schedule.name == "1f1b"
    assert pipe.schedule.num_ranks == 2
    assert pipe.schedule.num_microbatches == 4
    assert list(pipe.stages) == [0, 1]


def test_a_schedule_may_be_a_name_a_schedule_or_the_path_of_a_csv_or_json(tmp_path):
    built = pipert.Schedule.build("interleaved_1f1b", num_ranks=2, num_stages=4, num_microbatches=4)
    path = tmp_path / "schedule.csv"
    built.to_csv(path)
    json_path = tmp_path / "schedule.json"
    built.to_json(json_path)
    x, y = batch(8)
    for schedule in ("interleaved_1f1b", built, path, str(path), json_path, str(json_path)):
        model, reference = twins(mlp, 4)
        ranks = {"num_ranks": 2} if schedule == "interleaved_1f1b" else {}
        with pipert.Pipeline(
            pipert.split(model, 4), schedule=schedule, num_microbatches=4, loss_fn=mse, **ranks
        ) as pipe:
            assert pipe.schedule.actions == built.actions
            pipe.step(x, target=y)
            plain_loop(reference, x, y, 4)
            assert_same_gradients(pipe, reference)


def test_devices_give_the_number_of_ranks():
    with pipert.Pipeline(
        pipert.split(mlp(4), 4),
        schedule="interleaved_1f1b",
        num_microbatches=2,
        devices=["cpu", torch.device("cpu")],
    ) as pipe:
        assert pipe.schedule.num_ranks == 2
        assert pipe.schedule.num_stages == 4


def test_a_placement_that_the_schedule_has_is_accepted():
    for placement in ([0, 1, 0, 1], pipert.Placement.loop(2, 4)):
        with pipert.Pipeline(
            pipert.split(mlp(4), 4),
            schedule="interleaved_1f1b",
            num_ranks=2,
            num_microbatches=2,
            placement=placement,
        ) as pipe:
            assert pipe.schedule.placement.ranks == [0, 1, 0, 1]


def test_stages_may_be_modules_functions_classes_and_builders():
    built = []

    def build():
        built.append(1)
        return nn.Linear(8, 8)

    with pipert.Pipeline(
        [nn.Linear(8, 8), build, nn.Identity, torch.tanh],
        schedule="gpipe",
        num_microbatches=2,
        loss_fn=mse,
    ) as pipe:
        assert built == [1]
        assert isinstance(pipe.stages[1], nn.Linear)
        assert isinstance(pipe.stages[2], nn.Identity)
        assert pipe.stages[3] is torch.tanh
        x, y = batch(4)
        pipe.step(x, target=y)
        assert built == [1]


def test_schedules_that_run_on_one_rank_need_no_second_one():
    model, reference = twins(mlp, 4)
    x, y = batch(4)
    with pipert.Pipeline(pipert.split(model, 1), num_microbatches=4, loss_fn=mse) as pipe:
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        assert_same_gradients(pipe, reference)


# --- results ------------------------------------------------------------------------------------


def test_a_result_has_the_loss_the_losses_and_outputs_if_asked_for(pipe):
    x, y = batch(8)
    result = pipe.step(x, target=y)
    assert result.loss.shape == ()
    assert result.losses.shape == (4,)
    assert result.outputs is None
    assert not result.loss.requires_grad
    assert pipe.step(x, target=y, return_outputs=True).outputs.shape == (8, 8)


def test_results_of_earlier_steps_keep_their_values(pipe):
    x, y = batch(8)
    first = pipe.step(x, target=y, return_outputs=True)
    kept = copy.deepcopy(first)
    for p in pipe.parameters():
        p.data.zero_()
    pipe.step(x, target=y, return_outputs=True)
    assert same_bits(first.losses, kept.losses)
    assert same_bits(first.outputs, kept.outputs)


def test_without_a_loss_function_evaluation_gives_outputs_alone():
    x, _ = batch(4)
    with pipert.Pipeline([nn.Identity()], num_microbatches=2) as pipe:
        result = pipe.evaluate(x, return_outputs=True)
        assert result.loss is None
        assert result.losses is None
        assert same_bits(result.outputs, x)
        assert same_bits(pipe(x), x)


Pair = namedtuple("Pair", "first second")


def test_outputs_are_merged_inside_their_containers():
    def stage(x):
        return {
            "pair": Pair(x, (x.sum(), [len(x)])),
            "word": "w",
        }

    with pipert.Pipeline([stage], num_microbatches=2) as pipe:
        outputs = pipe(torch.arange(5.0))
    assert outputs["pair"].first.tolist() == [0, 1, 2, 3, 4]
    total, (lengths,) = outputs["pair"].second
    assert total.tolist() == [3, 7]
    assert lengths == [3, 2]
    assert outputs["word"] == ["w", "w"]


# --- names --------------------------------------------------------------------------------------


def test_parameters_have_the_names_and_order_of_the_unpartitioned_model(pipe):
    reference = mlp(4)
    assert [n for n, _ in pipe.named_parameters()] == [n for n, _ in reference.named_parameters()]
    for (_, p), q in zip(pipe.named_parameters(), pipe.parameters(), strict=True):
        assert p is q


def test_a_state_dict_goes_to_the_unpartitioned_model_and_back(pipe):
    reference = nn.Sequential(*mlp(4, seed=5))
    reference.load_state_dict(pipe.state_dict())
    x, y = batch(8)
    expected = [reference(p).detach() for p in x.tensor_split(4)]
    assert same_bits(pipe(x), torch.cat(expected))
    outputs = pipe(microbatches=x.tensor_split(4))  # no target, though there is a loss function
    assert all(same_bits(got, output) for got, output in zip(outputs, expected, strict=True))
    other = mlp(4, seed=6)
    pipe.load_state_dict(other.state_dict())
    for name, value in pipe.state_dict().items():
        assert same_bits(value, other.state_dict()[name])
    pipe.step(x, target=y)  # with the loaded weights
    plain_loop(other, x, y, 4)
    assert_same_gradients(pipe, other)


def test_stages_given_one_by_one_are_named_by_their_index():
    with pipert.Pipeline(
        [nn.Linear(2, 2), torch.tanh, nn.BatchNorm1d(2)], num_microbatches=3
    ) as pipe:
        assert [n for n, _ in pipe.named_parameters()] == [
            *("0.weight", "0.bias", "2.weight", "2.bias")
        ]
        assert "2.running_mean" in pipe.state_dict()
        pipe.load_state_dict(pipe.state_dict())


def test_a_module_in_two_places_of_one_process_is_trained_once():
    shared = nn.Linear(8, 8)
    model, reference = twins(lambda: nn.Sequential(shared, nn.Tanh(), shared))
    x, y = batch(6)
    with pipert.Pipeline(
        [model[0], model[1], model[2]],
        schedule="gpipe",
        num_ranks=3,
        num_microbatches=3,
        loss_fn=mse,
    ) as pipe:
        assert len(list(pipe.parameters())) == 2
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 3)
        for p, q in zip(pipe.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda state: state.pop("4.weight"), "state_dict lacks 4.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "does not have: extra"),
        (
            lambda state: state.update({"6.bias": torch.ones(3)}),
            r"state_dict\['6.bias'\] must have shape \(8,\), got \(3,\)",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_wrong_state_dict_is_refused_and_nothing_is_loaded(pipe, spoil, text):
    before = {name: value.clone() for name, value in pipe.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    spoil(state)
    with pytest.raises(ValueError, match=text):
        pipe.load_state_dict(state)
    assert all(same_bits(value, before[name]) for name, value in pipe.state_dict().items())


# --- gradient clipping --------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.05, 1e6, 0.0])
def test_clipping_equals_torchs_to_rounding(max_norm):
    model, reference = twins(mlp, 4)
    x, y = batch(8)
    with pipert.Pipeline(pipert.split(model, 4), num_microbatches=4, loss_fn=mse) as pipe:
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        norm = pipe.clip_grad_norm_(max_norm)
        expected = nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
        torch.testing.assert_close(norm, expected)
        for p, q in zip(pipe.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_clipping_without_gradients_has_the_norm_zero(pipe):
    assert pipe.clip_grad_norm_(1.0) == 0


def test_the_norm_has_the_same_bits_whatever_rank_has_the_stages():
    x, y = batch(8)
    norms = []
    for schedule, ranks in (("gpipe", 4), ("interleaved_1f1b", 2)):
        with pipert.Pipeline(
            pipert.split(mlp(4), 4),
            schedule=schedule,
            num_ranks=ranks,
            num_microbatches=4,
            loss_fn=mse,
        ) as pipe:
            pipe.step(x, target=y)
            norms.append(pipe.clip_grad_norm_(0.1))
    assert same_bits(*norms)


# --- looking at it ------------------------------------------------------------------------------


def test_schedule_and_programs_print(pipe):
    assert "1F3" in str(pipe.schedule)
    text = str(pipe.program)
    assert "program of rank 0 of 2" in text
    assert "program of rank 1 of 2" in text
    assert "run 1B3" in text
    assert len(pipe.program) == 2
    assert repr(pipe) == ("<pipert.Pipeline 1f1b: 2 stages on 2 ranks, 4 microbatches, threads>")


def test_the_parts_of_a_report_add_up(pipe):
    x, y = batch(8)
    pipe.step(x, target=y)
    report = pipe.report()
    assert [rank.rank for rank in report.ranks] == [0, 1]
    for rank in report.ranks:
        parts = (rank.compute_s, rank.transfer_s, rank.upstream_s, rank.downstream_s)
        parts += (rank.end_s, rank.host_s)
        assert sum(parts) == pytest.approx(rank.step_s, rel=0.02)
        assert rank.compute_s > 0
        assert min(parts) >= -1e-9
    assert report.step_s == max(rank.step_s for rank in report.ranks)
    assert all(0 <= bubble < 1 for bubble in report.bubble_measured + report.bubble_predicted)
    assert report.predicted_step_s > 0
    assert len(str(report).splitlines()) == 8  # times, memory, what carries the edges


def test_a_trace_shows_every_instruction_in_order(pipe):
    x, y = batch(8)
    pipe.step(x, target=y)
    trace = pipe.trace()
    for rank, program in enumerate(pipe.program):
        events = [event for event in trace.events if event.rank == rank]
        assert [e.kind for e in events] == [i["kind"] for i in program.instructions]
        assert [e.action for e in events if e.kind == "run"] == pipe.schedule.actions[rank]
        for event in events:
            assert 0 <= event.issued <= event.started <= event.ended
        for before, after in pairwise(events):
            assert before.ended <= after.issued
    spans = trace.timeline().ranks
    assert [[span.action for span in rank] for rank in spans] == pipe.schedule.actions


def test_a_trace_keeps_the_order_that_messages_impose(pipe):
    x, y = batch(8)
    pipe.step(x, target=y)
    when = {str(e.action): e for e in pipe.trace().events if e.action is not None}
    for m in range(4):
        assert when[f"0F{m}"].ended <= when[f"1F{m}"].started
        assert when[f"1B{m}"].ended <= when[f"0B{m}"].started


def test_a_report_follows_an_evaluation_too(pipe):
    x, y = batch(8)
    pipe.evaluate(x, target=y)
    assert {e.action.kind for e in pipe.trace().events if e.action is not None} == {"F"}
    assert pipe.report().ranks[1].compute_s > 0


def test_there_is_nothing_to_show_before_the_first_step(pipe):
    for look in (pipe.report, pipe.trace):
        with pytest.raises(ValueError, match="no pass has run yet"):
            look()


# --- closing ------------------------------------------------------------------------------------


def test_a_closed_pipeline_says_so_and_keeps_its_modules():
    pipe = pipert.Pipeline(pipert.split(mlp(2), 2), num_microbatches=2, loss_fn=mse)
    x, y = batch(4)
    pipe.step(x, target=y)
    pipe.close()
    pipe.close()
    for call in (lambda: pipe.step(x, target=y), lambda: pipe(x), pipe.report, pipe.trace):
        with pytest.raises(ValueError, match="the pipeline is closed"):
            call()
    assert all(p.grad is not None for p in pipe.parameters())
    assert len(pipe.state_dict()) == 4


def test_a_with_block_closes_the_pipeline():
    with pipert.Pipeline([nn.Identity()], num_microbatches=1) as pipe:
        pipe(torch.ones(1))
    with pytest.raises(ValueError, match="closed"):
        pipe(torch.ones(1))


def test_a_pipeline_that_nobody_holds_goes_with_its_modules():
    model = mlp(2)
    gone = weakref.ref(model[0])
    pipe = pipert.Pipeline(pipert.split(model, 2), num_microbatches=2, loss_fn=mse)
    pipe.step(*batch(4)[:1], target=batch(4)[1])
    del pipe, model
    gc.collect()
    assert gone() is None


def test_two_pipelines_live_side_by_side():
    x, y = batch(8)
    models = [twins(mlp, 2, seed=seed) for seed in (0, 1)]
    pipes = [
        pipert.Pipeline(pipert.split(model, 2), num_microbatches=4, loss_fn=mse)
        for model, _ in models
    ]
    for _ in range(2):
        for pipe, (_, reference) in zip(pipes, models, strict=True):
            pipe.step(x, target=y)
            plain_loop(reference, x, y, 4)
            assert_same_gradients(pipe, reference)
    for pipe in pipes:
        pipe.close()


def test_a_stage_may_run_a_pipeline_of_its_own():
    inner_model = mlp(2)
    with pipert.Pipeline(pipert.split(inner_model, 2), num_microbatches=1) as inner:
        x, _ = batch(2)
        with pipert.Pipeline([lambda h: inner(h)], num_microbatches=2) as outer:
            expected = torch.cat([inner_model(piece) for piece in x.chunk(2)])
            assert same_bits(outer(x), expected.detach())


def test_a_placement_of_bools_is_refused():
    stages = [nn.Linear(2, 2), nn.Linear(2, 2)]
    with pytest.raises(
        TypeError, match=r"placement must list ranks by number, got \[False, True\]"
    ):
        pipert.Pipeline(stages, num_microbatches=2, placement=[False, True])
