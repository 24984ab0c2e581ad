"""Every mistake and every failure says what, where, what was expected and what came; none hangs."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, twins
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


def make_pipe(stages=2, **options):
    options = {"num_microbatches": 4, "loss_fn": mse, **options}
    if isinstance(stages, int):
        stages = pipert.split(mlp(stages), stages)
    return pipert.Pipeline(stages, **options)


# --- mistakes in the arguments of Pipeline ------------------------------------------------------

linear = nn.Linear(8, 8)
built = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=4)


@pytest.mark.parametrize(
    ("stages", "options", "error", "text"),
    [
        (
            4,
            {"schedule": "interleaved_1f1b", "num_ranks": 4, "num_microbatches": 3},
            ValueError,
            r"num_microbatches must be at least 4 \(num_ranks\), got 3",
        ),
        (
            2,
            {"num_microbatches": 0},
            ValueError,
            "num_microbatches must be a positive integer, got 0",
        ),
        (2, {"num_microbatches": 2.0}, ValueError, "must be a positive integer, got 2.0"),
        (3, {"num_ranks": 2}, ValueError, "num_stages must be.*2.*got 3"),
        (3, {"schedule": "interleaved_1f1b", "num_ranks": 2}, ValueError, "num_stages.*got 3"),
        (2, {"schedule": "1f1"}, ValueError, "1f1.*1f1b"),
        (2, {"schedule": "interleaved"}, ValueError, "interleaved_1f1b"),
        (2, {"schedule": 7}, TypeError, "schedule must be a name, a Schedule or the path.*got int"),
        (2, {"schedule": "none.csv"}, ValueError, "schedule: there is no file 'none.csv'"),
        (2, {"schedule": "none.json"}, ValueError, "schedule: there is no file 'none.json'"),
        (2, {"schedule": "pipedream"}, ValueError, "must be synchronous, pipedream updates"),
        (
            2,
            {"schedule_options": {"forward_only": 1}},
            ValueError,
            "schedule_options: forward_only leaves nothing to train",
        ),
        (
            2,
            {"schedule": built, "num_microbatches": 5},
            ValueError,
            "the schedule is for num_microbatches=4, the pipeline has 5",
        ),
        (
            3,
            {"schedule": built},
            ValueError,
            "the schedule is for num_stages=2, the pipeline has 3",
        ),
        (
            2,
            {"schedule": built, "num_ranks": 1},
            ValueError,
            "the schedule is for num_ranks=2, the pipeline has 1",
        ),
        (2, {"schedule_options": {"group": 2}}, ValueError, "group"),
        (
            2,
            {"schedule": built, "schedule_options": {"group_size": 2}},
            ValueError,
            "schedule_options go with a schedule that is given by name",
        ),
        (
            2,
            {"devices": ["cpu"], "num_ranks": 2},
            ValueError,
            "one entry for each of the 2 ranks.*got 1",
        ),
        (
            2,
            {"placement": [1, 0]},
            ValueError,
            r"the schedule 1f1b puts its stages on ranks \[0, 1\], got \[1, 0\]",
        ),
        (linear, {}, TypeError, "stages must be a sequence of stages, got Linear.*pipert.split"),
        ([], {}, TypeError, "at least one stage, got \\[\\]"),
        ([linear, 3], {}, TypeError, r"stages\[1\] must be a module, a function, or .*; got int"),
        ([linear, lambda: 3], {}, TypeError, r"stages\[1\] must be a module.*; got int"),
        (
            2,
            {"loss_fn": 3},
            TypeError,
            r"loss_fn must be a function or a module \(not a class of modules\), got int",
        ),
        (
            2,
            {"stage_kind": "naive"},
            ValueError,
            "stage_kind must be 'module', 'native', 'captured' or 'auto', got 'naive'",
        ),
        *(
            (
                2,
                {"stage_kind": kind},
                TypeError,
                f"stage_kind must be one word or one for each of the 2 stages, got {kind}",
            )
            for kind in (None, 3)
        ),
        *(
            (2, {name: value}, TypeError, f"{name} must be True or False, got {value!r}")
            for name in ("broadcast_loss", "main_grads", "measure_memory")
            for value in ("no", None, 1)
        ),
        (2, {"timeout_s": 0}, ValueError, "timeout_s must be a positive number of seconds, got 0"),
        (2, {"receive_slots": 0}, ValueError, "receive_slots must be a positive integer, got 0"),
        (2, {"send_slots": 0}, ValueError, "send_slots must be a positive integer, got 0"),
        (2, {"send_slots": 1.5}, ValueError, "send_slots must be a positive integer, got 1.5"),
        (2, {"num_ranks": 0}, ValueError, "num_ranks.*got 0"),
        (
            2,
            {"intra_op_threads": 0},
            ValueError,
            "intra_op_threads must be a positive integer, got 0",
        ),
        (2, {"group": "pp"}, TypeError, "group must be a ProcessGroup or a DeviceMesh, got str"),
    ],
)
def test_an_argument_that_is_wrong_is_named_with_what_was_expected(stages, options, error, text):
    with pytest.raises(error, match=text) as raised:
        make_pipe(stages, **options)
    assert type(raised.value) is error
    assert "Exception raised from" not in str(raised.value)


def test_the_schedule_that_has_no_such_name_shows_those_that_are_near():
    with pytest.raises(ValueError, match="interleaved_1f1b") as error:
        make_pipe(schedule="interleaved_1f1")
    assert "'interleaved_1f1'" in str(error.value)


# --- mistakes in the batch ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda pipe, x, y: pipe.step(x),
            ValueError,
            r"needs the target: expected target=..., got None",
        ),
        (
            lambda pipe, x, y: pipe.evaluate(x),
            ValueError,
            r"needs the target: expected target=..., got None",
        ),
        (
            lambda pipe, x, y: pipe.step(target=y),
            ValueError,
            "the first stage's rank needs the batch: expected arguments, got none",
        ),
        (
            lambda pipe, x, y: pipe.step(x[:3], target=y[:3]),
            ValueError,
            r"at least num_microbatches \(4\) rows, args has 3",
        ),
        (
            lambda pipe, x, y: pipe.step(x, target=y[:5]),
            ValueError,
            r"target has 5 rows, expected 8 \(the batch size, that of the first tensor that is cut",
        ),
        (
            lambda pipe, x, y: pipe.step(x, y[:7], target=y),
            ValueError,
            r"args\[1\] has 7 rows, expected 8",
        ),
        (
            lambda pipe, x, y: pipe.step(x, target={"a": [y, y[:2]]}),
            ValueError,
            r"target\['a'\]\[1\] has 2 rows, expected 8",
        ),
        (
            lambda pipe, x, y: pipe.step(x, target=y, mask=y),
            TypeError,
            "no stage's forward takes the keyword argument 'mask'",
        ),
        (
            lambda pipe, x, y: pipe.step(x, microbatches=[x] * 4, target=[y] * 4),
            ValueError,
            "expected microbatches or arguments of the batch, got both",
        ),
        (
            lambda pipe, x, y: pipe.step(microbatches=[x] * 3, target=[y] * 4),
            ValueError,
            "microbatches must have one entry for each of the 4 microbatches, got 3",
        ),
        (
            lambda pipe, x, y: pipe.step(microbatches=[x] * 4, target=[y] * 5),
            ValueError,
            "target must have one entry for each of the 4 microbatches, got 5",
        ),
        (lambda pipe, x, y: pipe.clip_grad_norm_(-1.0), ValueError, "not be negative, got -1.0"),
    ],
)
def test_a_batch_that_is_wrong_is_refused_and_the_next_one_runs(call, error, text):
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with make_pipe(pipert.split(model, 2)) as pipe:
        with pytest.raises(error, match=text) as raised:
            call(pipe, x, y)
        assert type(raised.value) is error
        assert all(p.grad is None for p in pipe.parameters())
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        assert_same_gradients(pipe, reference)


def test_a_step_without_a_loss_function_is_refused():
    x, y = batch(8)
    with (
        make_pipe(loss_fn=None) as pipe,
        pytest.raises(ValueError, match=r"step needs a loss function: expected Pipeline\(loss_fn="),
    ):
        pipe.step(x, target=y)


def test_a_second_step_inside_a_step_is_refused():
    pipes = []

    def stage(x):
        pipes[0](x)
        return x

    with make_pipe([stage], num_microbatches=1, loss_fn=None) as pipe:
        pipes.append(pipe)
        with pytest.raises(pipert.PipelineError, match="the pipeline is running a step"):
            pipe(torch.ones(1))


def test_closing_inside_a_step_is_refused():
    pipes = []

    def stage(x):
        pipes[0].close()
        return x

    with make_pipe([stage], num_microbatches=1, loss_fn=None) as pipe:
        pipes.append(pipe)
        for _ in range(2):
            with pytest.raises(pipert.PipelineError, match="the pipeline is running a step"):
                pipe(torch.ones(1))


# --- failures while a step runs -----------------------------------------------------------------


class Boom(Exception):  # noqa: N818
    pass


class Fuse(nn.Module):
    """A linear layer that fails once, where it is told to."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.where = None  # "forward" or "backward"
        self.microbatch = 0
        self.count = {"forward": 0, "backward": 0}

    def arm(self, where, microbatch):
        self.where, self.microbatch = where, microbatch
        self.count = {"forward": 0, "backward": 0}

    def burn(self, where):
        at = self.count[where]
        self.count[where] += 1
        if self.where == where and at == self.microbatch:
            self.where = None
            raise Boom(f"in {where}")

    def forward(self, x):
        self.burn("forward")
        h = self.linear(x)
        if h.requires_grad:
            h.register_hook(lambda g: self.burn("backward"))
        return h


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("schedule", "ranks"), [("1f1b", 4), ("interleaved_1f1b", 2), ("gpipe", 4)]
)
def test_an_exception_in_a_stage_reaches_the_caller_and_the_pipeline_goes_on(
    where, stage, schedule, ranks
):
    stages = [Fuse() for _ in range(4)]
    reference = nn.Sequential(*[nn.Linear(8, 8) for _ in stages])
    for fuse, layer in zip(stages, reference, strict=True):
        layer.load_state_dict(fuse.linear.state_dict())
    x, y = batch(8)
    with make_pipe(stages, schedule=schedule, num_ranks=ranks) as pipe:
        stages[stage].arm(where, 2)
        start = time.monotonic()
        with pytest.raises(pipert.PipelineError) as raised:
            pipe.step(x, target=y)
        assert time.monotonic() - start < 1
        error = raised.value
        action = f"{stage}{'F' if where == 'forward' else 'B'}2"
        rank = stage % ranks
        assert str(error).startswith(
            f"rank {rank}, stage {stage}, microbatch 2, {action} ({where}): Boom: in {where}"
        )
        assert (error.kind, error.rank, error.stage) == ("action", rank, stage)
        assert (error.microbatch, error.action) == (2, action)
        assert type(error.__cause__) is Boom
        names = [frame.name for frame in traceback.extract_tb(error.__cause__.__traceback__)]
        assert names[-1] == "burn"
        assert pipe._ranks._runtime.num_in_flight() == 0
        for p in pipe.parameters():
            p.grad = None
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        for p, q in zip(pipe.parameters(), reference.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("evaluate", [False, True])
def test_an_exception_in_the_loss_names_the_last_stage(evaluate):
    def loss_fn(output, target):
        raise Boom("no loss")

    x, y = batch(8)
    with make_pipe(loss_fn=loss_fn) as pipe:
        run = pipe.evaluate if evaluate else pipe.step
        with pytest.raises(pipert.PipelineError, match=r"rank 1, stage 1, microbatch 0, 1F0") as e:
            run(x, target=y)
    assert type(e.value.__cause__) is Boom


def test_the_users_own_traceback_is_printed():
    x, y = batch(8)
    stages = [Fuse(), Fuse()]
    stages[1].arm("forward", 0)
    with make_pipe(stages) as pipe, pytest.raises(pipert.PipelineError) as raised:
        pipe.step(x, target=y)
    text = "".join(traceback.format_exception(raised.value))
    assert 'raise Boom(f"in {where}")' in text
    assert "direct cause" in text


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, MemoryError])
def test_exceptions_of_every_kind_are_a_cause(kind):
    def stage(x):
        raise kind("of its own")

    with make_pipe([nn.Identity(), stage], loss_fn=None) as pipe:
        with pytest.raises(pipert.PipelineError) as raised:
            pipe(torch.ones(4))
        assert type(raised.value.__cause__) is kind


def test_the_first_of_two_failures_wins():
    """Both ranks fail, the second one only after the first has been told."""

    class First(nn.Module):
        def forward(self, x):
            raise Boom("first")

    def second(x):
        raise AssertionError("never reached: it has no input")

    with (
        make_pipe([First(), second], loss_fn=None) as pipe,
        pytest.raises(pipert.PipelineError, match="first"),
    ):
        pipe(torch.ones(4))


@pytest.mark.parametrize(
    ("loss_fn", "text"),
    [
        (
            lambda o, t: (o - t).square(),
            r"the loss must be one number, got a tensor of shape \[2, 8\]",
        ),
        (lambda o, t: 1.0, "the loss function must return a tensor, got float"),
        (lambda o, t: o.detach().sum(), "the loss of microbatch 0 does not require a gradient"),
        (lambda o: o.sum(), "takes 1 positional argument but 2 were given"),
    ],
    ids=["shape", "type", "detached", "signature"],
)
def test_a_loss_that_is_none_is_described(loss_fn, text):
    x, y = batch(8)
    with make_pipe(loss_fn=loss_fn) as pipe, pytest.raises(pipert.PipelineError, match=text):
        pipe.step(x, target=y)


def test_values_that_stages_cannot_exchange_are_named_with_their_place():
    def stage(x):
        return {"fine": x, "bad": [x, object()]}

    with make_pipe([stage, nn.Identity()], loss_fn=None) as pipe:
        with pytest.raises(pipert.PipelineError, match=r"stage 0's output\['bad'\]\[1\]") as raised:
            pipe(torch.ones(4))
        assert "is of type object" in str(raised.value)
        assert type(raised.value.__cause__) is TypeError


# --- stages that don't fit each other -----------------------------------------------------------


def message_of(stages, x, **options):
    with (
        make_pipe(stages, loss_fn=None, schedule="gpipe", **options) as pipe,
        pytest.raises(pipert.PipelineError) as raised,
    ):
        pipe(x)
    return str(raised.value)


def test_an_output_of_the_wrong_width_names_stage_argument_expected_and_got():
    text = message_of([nn.Linear(8, 7), nn.Linear(8, 4)], torch.ones(8, 8))
    assert "in stage 1 (Linear(in_features=8, out_features=4, bias=True))" in text
    assert "got 0: float32[2, 7] and expected float32[..., 8]" in text or (
        "got input: float32[2, 7] and expected float32[..., 8]" in text
    )
    assert text.endswith("\n  stage 1 got float32[2, 7] from stage 0 on rank 0")


def test_an_output_of_the_wrong_dtype_names_both_dtypes():
    text = message_of([nn.Linear(8, 8).double(), nn.Linear(8, 4)], torch.ones(8, 8).double())
    assert "float64[2, 8] and expected float32[..., 8]" in text


def test_a_module_deep_in_a_stage_is_named_by_its_path():
    stage = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Linear(5, 5)))
    text = message_of([nn.Linear(8, 8), stage], torch.ones(8, 8))
    assert "in stage 1, module '1.1' (Linear(in_features=5" in text
    assert "float32[2, 8] and expected float32[..., 5]" in text


def test_floats_for_an_embedding_are_told_apart():
    text = message_of([nn.Linear(8, 8), nn.Embedding(4, 4)], torch.ones(8, 8))
    assert "float32[2, 8] and expected int64 or int32, below 4" in text


def test_too_few_and_too_many_arguments_say_what_the_stage_before_gave():
    class Pair(nn.Module):
        def forward(self, a, b):
            return a + b

    text = message_of([nn.Linear(8, 8), Pair()], torch.ones(8, 8))
    assert "missing 1 required positional argument: 'b'" in text
    assert "in stage 1 (Pair()), which got 0: float32[2, 8]" in text
    text = message_of([lambda x: (x, x, x), Pair()], torch.ones(8, 8))
    assert "takes 3 positional arguments but 4 were given" in text


# --- time limits --------------------------------------------------------------------------------


def test_a_wait_that_takes_too_long_says_who_waits_for_what():
    free = threading.Event()

    def slow(x):
        assert free.wait(30)
        return x

    x, _ = batch(4)
    with make_pipe([slow, nn.Identity()], loss_fn=None, timeout_s=0.3) as pipe:
        timer = threading.Timer(0.8, free.set)
        timer.start()
        with pytest.raises(pipert.PipelineError) as raised:
            pipe(x)
        timer.join()
        assert raised.value.kind == "timeout"
        assert isinstance(raised.value, TimeoutError)
        text = str(raised.value)
        assert "no progress for 0.3 s" in text
        assert (
            "rank 1 waits to run 1F0, for the activation of stage 0, microbatch 0, from rank 0"
            in text
        )
        assert "rank 0 is at run 0F0" in text
        assert torch.equal(pipe(x), x)  # the event is set now


def test_a_slow_stage_that_nobody_waits_for_has_no_time_limit():
    free = threading.Event()

    def slow(x):
        free.wait(0.5)  # longer than the limit
        return x

    with make_pipe([slow], loss_fn=None, num_microbatches=1, timeout_s=0.2) as pipe:
        assert torch.equal(pipe(torch.ones(1)), torch.ones(1))


# --- Ctrl-C -------------------------------------------------------------------------------------

INTERRUPTED = """
    import os, signal, sys, threading, time
    import torch
    from torch import nn
    import pipert

    busy = [True]
    def fast(x):
        return x * 2
    def loops(x):
        if busy[0]:
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
            while True:
                pass
        return x + 1
    stages = [loops, fast] if sys.argv[1] == "first" else [fast, loops]
    pipe = pipert.Pipeline(stages, schedule="gpipe", num_microbatches=2)
    x = torch.ones(2)
    start = time.monotonic()
    try:
        pipe(x)
    except KeyboardInterrupt:
        assert time.monotonic() - start < 2
        print("interrupted")
    busy[0] = False
    print(pipe(x).tolist())
    print(pipe(x).tolist())
"""


@pytest.mark.parametrize("where", ["first", "last"])
def test_ctrl_c_ends_a_step_whose_stage_loops_in_python(where):
    """The other rank waits for it, or is done; both are freed, and the next step is right."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED), where],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    value = "[4.0, 4.0]" if where == "first" else "[3.0, 3.0]"
    assert done.stdout.split("\n") == ["interrupted", value, value, ""]


def test_ctrl_c_that_nobody_catches_ends_the_process_as_python_does():
    script = """
        import os, signal, threading
        import torch
        import pipert

        def loops(x):
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        pipert.Pipeline([loops, torch.tanh], num_microbatches=2)(torch.ones(2))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr.strip().endswith("KeyboardInterrupt")


def test_a_signal_handler_of_ones_own_may_raise_what_it_likes():
    def handler(number, frame):
        raise Boom("from the handler")

    def stage(x):
        os.kill(os.getpid(), signal.SIGUSR1)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            pass
        return x

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with make_pipe([stage], loss_fn=None, num_microbatches=1) as pipe:
            start = time.monotonic()
            with pytest.raises(Boom, match="from the handler"):
                pipe(torch.ones(1))
            assert time.monotonic() - start < 5
    finally:
        signal.signal(signal.SIGUSR1, before)
