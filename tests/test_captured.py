"""Captured steps: which passes are recorded, when a recording is replayed, and with which bits.

Without a CUDA device a recording is a function that is run again into the tensors of the first run.
"""

import gc
import threading
import weakref

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, same_bits, twins
from torch import nn

import pipert
from pipert.captured import MAX_RECORDINGS, NUM_WARMUPS, CapturedSteps
from pipert.captured.conditions import Conditions
from pipert.captured.refusals import options_in_use, refusal_of_steps

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


class Rerun:
    """Stands in for a CudaGraph: what it records is done at once, and not again at first."""

    def __init__(self, pipe):
        self._parameters = list(pipe.parameters())
        self._is_done = False

    def capture(self, run):
        self._run = run
        self._result = run()
        self._gradients = [p.grad for p in self._parameters]
        self._is_done = True
        return self._result

    def prepare(self):
        pass

    def replay(self):
        if not self._is_done:
            self._result.slot.fill(self._run().slot.copies())
            for parameter, mine in zip(self._parameters, self._gradients, strict=True):
                if parameter.grad is not mine:
                    mine.copy_(parameter.grad)
        self._is_done = False


def pipeline(model, *, num_stages=2, recording=None, **options):
    pipe = pipert.Pipeline(
        model if isinstance(model, list) else pipert.split(model, num_stages),
        num_microbatches=4,
        loss_fn=mse,
        stage_kind="captured",
        **options,
    )
    record_on_the_cpu(pipe, (lambda: Rerun(pipe)) if recording is None else recording)
    return pipe


def record_on_the_cpu(pipe, recording):
    cpu = torch.device("cpu")
    conditions = Conditions(pipe.stages.values(), cpu, list)
    pipe._captured = CapturedSteps(conditions, cpu, recording, None, pipe._ranks.watch_leaves)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_replayed_steps_have_the_bits_of_the_plain_loop(set_to_none):
    model, reference = twins(mlp, 2)
    with pipeline(model) as pipe:
        ours = torch.optim.SGD(pipe.parameters(), lr=0.1)
        theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
        for step in range(NUM_WARMUPS + 6):
            x, y = batch(8, seed=step)
            result = pipe.step(x, target=y)
            assert same_bits(result.losses, plain_loop(reference, x, y, 4))
            assert_same_gradients(pipe, reference)
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad(set_to_none=set_to_none)
        assert pipe._captured.num_replays > 0
        assert pipe.stage_kinds == {0: "captured", 1: "captured"}
        assert pipe.step_index == NUM_WARMUPS + 6


def test_gradients_add_up_over_replayed_steps():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with pipeline(model) as pipe:
        for _ in range(3 * NUM_WARMUPS + 3):
            pipe.step(x, target=y)
            plain_loop(reference, x, y, 4)
            assert_same_gradients(pipe, reference)
        assert pipe._captured.num_replays > 0


def test_a_result_is_the_callers_own():
    model, _ = twins(mlp, 2)
    with pipeline(model) as pipe:
        results = []
        for step in range(NUM_WARMUPS + 3):
            x, y = batch(8, seed=step)
            result = pipe.evaluate(x, target=y, return_outputs=True)
            results.append((result, result.losses.clone(), result.outputs.clone()))
        for result, losses, outputs in results:
            assert same_bits(result.losses, losses)
            assert same_bits(result.outputs, outputs)


def test_other_shapes_modes_and_values_get_recordings_of_their_own():
    model, _ = twins(mlp, 2)
    with pipeline(model) as pipe:

        def run(rows, **options):
            x, y = batch(rows)
            for _ in range(NUM_WARMUPS + 1):
                pipe.evaluate(x, target=y, **options)
            return pipe._captured.num_recordings

        assert run(8) == 1
        assert run(8) == 1
        assert run(12) == 2
        assert run(8, return_outputs=True) == 3
        pipe.eval()
        assert run(8) == 4
        for rows in range(16, 16 + 4 * MAX_RECORDINGS, 4):
            run(rows)
        assert pipe._captured.num_recordings == MAX_RECORDINGS
        pipe.forget_captured()
        assert pipe._captured.num_recordings == 0


def test_a_module_inside_that_changes_its_mode_is_noticed():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    x, y = batch(8)
    with pipeline(model) as pipe:
        for _ in range(NUM_WARMUPS + 1):
            pipe.evaluate(x, target=y)
        assert pipe._captured.reason is None
        model[1].eval()
        pipe.evaluate(x, target=y)
        assert pipe._captured.reason is not None


def test_stages_that_train_weights_which_no_module_has_are_not_recorded():
    inner = nn.Linear(8, 8)  # of a function, not of a module

    def stage(x):
        return inner(x)

    x, y = batch(8)
    with pipeline([nn.Linear(8, 8), stage]) as pipe:
        for _ in range(NUM_WARMUPS + 3):
            inner.weight.grad = None
            pipe.step(x, target=y)
            assert inner.weight.grad is not None
        assert "no parameter of a stage's module" in pipe._captured.reason
        assert pipe._captured.num_replays == 0
        for _ in range(NUM_WARMUPS + 1):
            pipe.evaluate(x, target=y)
        assert pipe._captured.num_replays == 1


def test_weights_that_are_replaced_are_noticed():
    model, other = mlp(2), mlp(2, seed=7)
    x, y = batch(8)
    with pipeline(model) as pipe:
        for _ in range(NUM_WARMUPS + 1):
            pipe.evaluate(x, target=y)
        assert pipe._captured.reason is None
        model.load_state_dict(other.state_dict(), assign=True)
        pipe.evaluate(x, target=y)
        assert pipe._captured.reason is not None


def test_a_buffer_that_is_replaced_keeps_a_pass_from_being_recorded():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return x

    model = nn.Sequential(nn.Linear(8, 8), Average(), nn.Linear(8, 8))
    x, y = batch(8)
    with pipeline(model) as pipe:
        for _ in range(2 * NUM_WARMUPS + 2):
            pipe.evaluate(x, target=y)
        assert pipe._captured.num_recordings == 0


def test_what_a_forward_put_in_place_while_it_was_recorded_is_taken_back():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))
            self.num_passes = 0

        def forward(self, x):
            self.num_passes += 1
            if self.num_passes == 4 * NUM_WARMUPS + 1:  # the first microbatch that is recorded
                self.mean = torch.ones(8)
                self.register_buffer("more", torch.ones(8))
            return x

    model = nn.Sequential(nn.Linear(8, 8), Late(), nn.Linear(8, 8))
    x, y = batch(8)
    mean = model[1].mean
    with pipeline(model) as pipe:
        for _ in range(NUM_WARMUPS + 1):
            pipe.evaluate(x, target=y)
        assert "in the place of 'mean'" in pipe._captured.reason
        assert dict(model[1].named_buffers()) == {"mean": mean}


def test_weights_that_lie_elsewhere_are_recorded_anew():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with pipeline(model) as pipe:
        for _ in range(NUM_WARMUPS + 1):
            pipe.evaluate(x, target=y)
        assert pipe._captured.reason is None
        for parameter in model.parameters():
            parameter.data = parameter.data * 2
        for parameter in reference.parameters():
            parameter.data = parameter.data * 2
        result = pipe.evaluate(x, target=y)
        assert pipe._captured.reason is not None  # it ran as it is
        with torch.no_grad():
            losses = [
                mse(reference(a), b)
                for a, b in zip(x.tensor_split(4), y.tensor_split(4), strict=True)
            ]
        assert same_bits(result.losses, torch.stack(losses))


class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.ones(8, 8))

    def forward(self, x):
        return x * self.factors.sum()


def test_weights_of_another_size_in_the_same_place_are_noticed():
    model = nn.Sequential(Scales(), nn.Linear(8, 8))
    x, y = batch(8)
    with pipeline(model) as pipe:
        for _ in range(NUM_WARMUPS + 1):
            pipe.evaluate(x, target=y)
        assert pipe._captured.reason is None
        model[0].factors.data = model[0].factors.data[:4]
        pipe.evaluate(x, target=y)
        assert pipe._captured.reason is not None


def test_the_precision_of_one_backend_is_noticed():
    model, _ = twins(mlp, 2)
    x, y = batch(8)
    matmul = torch.backends.cuda.matmul
    with pipeline(model) as pipe:
        for _ in range(NUM_WARMUPS + 1):
            pipe.evaluate(x, target=y)
        assert pipe._captured.reason is None
        before = matmul.fp32_precision
        matmul.fp32_precision = "tf32"
        try:
            pipe.evaluate(x, target=y)
        finally:
            matmul.fp32_precision = before
        assert pipe._captured.reason is not None


def test_outputs_have_the_strides_that_modules_give_them():
    x = torch.randn(8, 3, 4, 4).to(memory_format=torch.channels_last)
    with pipeline(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())) as pipe:
        expected = pipe(x)
        for _ in range(NUM_WARMUPS + 1):
            outputs = pipe(x)
        assert pipe._captured.reason is None
        assert same_bits(outputs, expected)
        assert outputs.stride() == expected.stride() != outputs.contiguous().stride()


def test_a_pipeline_goes_with_its_last_reference():
    model, _ = twins(mlp, 2)
    x, y = batch(8)
    pipe = pipert.Pipeline(
        pipert.split(model, 2), num_microbatches=4, loss_fn=mse, stage_kind="captured"
    )
    pipe.step(x, target=y)
    gone = weakref.ref(pipe)
    gc.disable()
    try:
        del pipe
        assert gone() is None
    finally:
        gc.enable()


def test_a_module_that_refers_to_its_closed_pipeline_is_not_held():
    model, _ = twins(mlp, 2)
    x, y = batch(8)
    pipe = pipeline(model)
    with pipe:
        for _ in range(NUM_WARMUPS + 1):
            pipe.evaluate(x, target=y)
        assert pipe._captured.num_replays > 0
    model[0].pipe = [pipe]
    gone = weakref.ref(model[0])
    del model, pipe
    gc.collect()
    assert gone() is None


def test_a_second_caller_is_refused_during_a_replay():
    model, _ = twins(mlp, 2)
    x, y = batch(8)
    begun, may_end = threading.Event(), threading.Event()

    class Slow(Rerun):
        def prepare(self):
            begun.set()
            assert may_end.wait(20)

    with pipeline(model, recording=lambda: Slow(pipe)) as pipe:
        for _ in range(NUM_WARMUPS):
            pipe.evaluate(x, target=y)
        first = threading.Thread(target=pipe.evaluate, args=(x,), kwargs={"target": y})
        first.start()
        assert begun.wait(20)
        with pytest.raises(ValueError, match="one at a time"):
            pipe.evaluate(x, target=y)
        may_end.set()
        first.join()
        assert pipe._captured.num_replays == 1


class Refusing:
    def prepare(self):
        raise AssertionError("nothing was recorded")

    def capture(self, run):
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    def replay(self):
        raise AssertionError("nothing was recorded")


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with pipeline(model, recording=Refusing) as pipe:
        for step in range(NUM_WARMUPS + 2):
            pipe.zero_grad = None
            for parameter in model.parameters():
                parameter.grad = None
            for parameter in reference.parameters():
                parameter.grad = None
            assert same_bits(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
            assert_same_gradients(pipe, reference)
            assert pipe.step_index == step + 1
        assert pipe.stage_kinds[0] == (
            "module: it can't be recorded: RuntimeError: operation not permitted when stream is "
            "capturing"
        )
        assert "operation not permitted" in str(pipe.report())


def test_what_a_recording_that_failed_had_taken_is_free_at_once():
    made = []

    def make():
        recording = Refusing()
        made.append(weakref.ref(recording))
        return recording

    model, _ = twins(mlp, 2)
    x, y = batch(8)
    with pipeline(model, recording=make) as pipe:
        gc.disable()
        try:
            for _ in range(NUM_WARMUPS + 1):
                pipe.evaluate(x, target=y)
            assert [one() for one in made] == [None]
        finally:
            gc.enable()


class Interrupted(Refusing):
    def capture(self, run):
        run()
        raise pipert.PipelineError("stopped") from KeyboardInterrupt()


def test_ctrl_c_during_a_recording_is_raised_and_gradients_are_as_before():
    model, _ = twins(mlp, 2)
    x, y = batch(8)
    with pipeline(model, recording=Interrupted) as pipe:
        for _ in range(NUM_WARMUPS):
            pipe.evaluate(x, target=y)
            for parameter in model.parameters():
                parameter.grad = None
            pipe.step(x, target=y)
        for parameter in model.parameters():
            parameter.grad = None
        with pytest.raises(pipert.PipelineError, match="stopped"):
            pipe.step(x, target=y)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_failure_of_the_users_code_is_raised_as_ever():
    def fails(output, target):
        raise KeyError("mine")

    model, _ = twins(mlp, 2)
    pipe = pipert.Pipeline(
        pipert.split(model, 2), num_microbatches=4, loss_fn=fails, stage_kind="captured"
    )
    x, y = batch(8)
    with pipe, pytest.raises(pipert.PipelineError, match="mine"):
        pipe.step(x, target=y)


def test_arguments_that_a_recording_cannot_read_are_named():
    class Scale(nn.Module):
        def forward(self, x, factor):
            return x * float(factor)

    pipe = pipert.Pipeline(
        [Scale(), nn.Linear(8, 8)], num_microbatches=4, loss_fn=mse, stage_kind="captured"
    )
    record_on_the_cpu(pipe, Refusing)
    x, y = batch(8)
    with pipe:
        pipe.evaluate(x, factor=object.__new__(Half), target=y)
        assert pipe._captured.reason == "an argument is a Half"
        pipe.evaluate(x.requires_grad_(), factor=2, target=y)
        assert pipe._captured.reason == "an argument requires a gradient"


class Half:
    def __float__(self):
        return 0.5


def test_after_a_replay_there_is_no_trace_of_it():
    model, _ = twins(mlp, 2)
    x, y = batch(8)
    with pipeline(model) as pipe:
        pipe.step(x, target=y)
        assert pipe.trace().events
        for _ in range(2 * NUM_WARMUPS + 2):
            pipe.step(x, target=y)
        with pytest.raises(ValueError, match="passes are replayed"):
            pipe.trace()
        with pytest.raises(ValueError, match="passes are replayed"):
            pipe.costs()


CUDA = {0: torch.device("cuda:0"), 1: torch.device("cuda:0")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        (
            {"kinds": ["captured", "native"]},
            "a pass is recorded whole, and some stages are 'native'",
        ),
        (
            {"devices": {0: torch.device("cpu")}},
            "only a CUDA device can record, the ranks are on cpu",
        ),
        (
            {"devices": {**CUDA, 1: torch.device("cuda:1")}},
            "the ranks are on several devices",
        ),
        (
            {"in_use": {"network": False, "device_times": True}},
            "a replay takes no times (device_times)",
        ),
        ({"in_use": {"rng_seed": True}}, "what a step draws depends on its number (rng_seed)"),
    ],
)
def test_a_pipeline_that_cannot_be_recorded_says_why(change, reason):
    given = {"kinds": ["captured"], "devices": CUDA, "in_use": {}} | change
    kinds, devices = given.pop("kinds"), given.pop("devices")
    assert refusal_of_steps(kinds, devices, **given) == reason


def test_on_the_cpu_stages_run_as_modules_and_say_why():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with pipert.Pipeline(
        pipert.split(model, 2), num_microbatches=4, loss_fn=mse, stage_kind="captured"
    ) as pipe:
        assert same_bits(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
        assert_same_gradients(pipe, reference)
        assert pipe.stage_kinds == dict.fromkeys(
            (0, 1), "module: only a CUDA device can record, the ranks are on cpu"
        )
    assert NUM_WARMUPS > 0


# --- losses ---------------------------------------------------------------------------------------


def with_metrics(output, target):
    return mse(output, target), {"worst": (output - target).abs().max(), "rows": len(output)}


def lossy_pipeline(loss_fn, **options):
    pipe = pipert.Pipeline(
        pipert.split(mlp(2), 2),
        num_microbatches=4,
        loss_fn=loss_fn,
        stage_kind="captured",
        **options,
    )
    record_on_the_cpu(pipe, lambda: Rerun(pipe))
    return pipe


def test_metrics_are_those_of_the_replayed_pass():
    reference = mlp(2)
    with lossy_pipeline(with_metrics) as pipe:
        for step in range(NUM_WARMUPS + 4):
            x, y = batch(10, seed=step)
            metrics = pipe.evaluate(x, target=y).metrics
            worst = [
                with_metrics(reference(a), b)[1]["worst"]
                for a, b in zip(x.tensor_split(4), y.tensor_split(4), strict=True)
            ]
            assert same_bits(metrics["worst"], torch.stack(worst).detach())
            assert metrics["rows"].tolist() == [3, 3, 2, 2]
        assert pipe._captured.num_replays > 0


def test_passes_with_other_loss_weights_have_recordings_of_their_own():
    x, y = batch(8)
    with lossy_pipeline(mse) as pipe:
        for _ in range(NUM_WARMUPS + 2):
            for weights in ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0], None):
                result = pipe.evaluate(x, target=y, loss_weights=weights)
                factors = torch.tensor(weights or [0.25] * 4)
                assert torch.allclose(result.loss, (result.losses * factors).sum())
        assert pipe._captured.num_recordings == 3


def test_weights_in_a_tensor_keep_a_pass_from_being_recorded():
    x, y = batch(8)
    with lossy_pipeline(mse) as pipe:
        for _ in range(NUM_WARMUPS + 2):
            pipe.step(x, target=y, loss_weights=torch.ones(4))
        assert pipe._captured.reason.startswith("loss_weights are a tensor")


def test_losses_that_are_counted_keep_passes_from_being_recorded():
    with pipert.Pipeline(
        pipert.split(mlp(2), 2),
        num_microbatches=4,
        loss_fn=mse,
        stage_kind="captured",
        loss_weight=len,
    ) as pipe:
        in_use = options_in_use(pipe._options, pipe.schedule, pipe._stages)
    reason = refusal_of_steps(["captured"], {0: torch.device("cuda")}, in_use)
    assert reason == "what losses count is counted anew in each batch (loss_weight)"
