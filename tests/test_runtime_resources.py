"""Nothing piles up: not over a thousand steps, not over a hundred pipelines, not after failures."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path

import pytest
import torch
from plain_loop import batch, mlp
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(110)
mse = nn.functional.mse_loss


def num_threads():
    """Of the whole process, Python's or not."""
    return len(list(Path("/proc/self/task").iterdir()))


def num_file_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def num_tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def make_pipe(num_stages=3, width=8, **options):
    options = {"num_microbatches": 4, "loss_fn": mse, **options}
    return pipert.Pipeline(pipert.split(mlp(num_stages, width), num_stages), **options)


@pytest.mark.parametrize(
    ("schedule", "stages", "ranks"),
    [("1f1b", 3, 3), ("interleaved_1f1b", 4, 2), ("zb_h1", 3, 3)],
)
def test_a_thousand_steps_grow_nothing(schedule, stages, ranks):
    x, y = batch(64, 64)  # a leaked microbatch would be 4 KB, of a thousand steps at least 4 MB
    with make_pipe(stages, 64, schedule=schedule, num_ranks=ranks) as pipe:

        def steps(count):
            for _ in range(count):
                pipe.step(x, target=y, return_outputs=True)
                pipe.evaluate(x, target=y)
                for p in pipe.parameters():
                    p.grad = None

        def held():
            gc.collect()
            return resident_bytes(), num_threads(), num_file_descriptors(), num_tensors()

        steps(100)
        grown = []
        for _ in range(3):  # the heap of a process that did other things may settle; a leak goes on
            before = held()
            steps(1000)
            after = held()
            assert after[1:] == before[1:]
            grown.append(after[0] - before[0])
            if grown[-1] < 1_000_000:
                break
    assert min(grown) < 1_000_000, grown


def test_a_hundred_pipelines_leave_nothing_behind():
    x, y = batch(8)

    def live(count):
        for number in range(count):
            pipe = make_pipe()
            pipe.step(x, target=y)
            if number % 2:
                pipe.close()  # the others just go

    live(10)
    gc.collect()
    before = num_threads(), num_file_descriptors(), num_tensors(), threading.active_count()
    memory = resident_bytes()
    live(100)
    gc.collect()
    assert (
        num_threads(),
        num_file_descriptors(),
        num_tensors(),
        threading.active_count(),
    ) == before
    assert resident_bytes() - memory < 8_000_000


def test_pipelines_that_could_not_be_made_leave_no_threads():
    before = num_threads()
    for _ in range(3):
        with pytest.raises(ValueError, match="receive_slots"):
            make_pipe(receive_slots=0)
    assert num_threads() == before


def test_outputs_are_freed_once_the_next_stage_has_read_them():
    """Nobody saves the first stage's output for backward: adding to it needs its shape alone."""
    arrays = []  # weak references to the memory of each output

    class Tracked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            array = x.detach().numpy().copy()
            arrays.append(weakref.ref(array))
            return torch.from_numpy(array)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Output(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return Tracked.apply(self.linear(x))

    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(8))

        def forward(self, h):
            return h + self.bias

    alive = []

    def loss_fn(output):
        alive.append([number for number, array in enumerate(arrays) if array() is not None])
        return output.sum()

    x, _ = batch(8)
    with pipert.Pipeline(
        [Output(), Adds()], schedule="gpipe", num_microbatches=8, loss_fn=loss_fn
    ) as pipe:
        pipe.step(x)
        assert len(arrays) == len(alive) == 8
        # When the loss of a microbatch is computed, all outputs before its own are gone.
        assert all(min(numbers, default=m) >= m for m, numbers in enumerate(alive))
        assert all(array() is None for array in arrays)


def test_a_batch_is_not_kept_after_its_step():
    with make_pipe(2) as pipe:
        x, y = batch(8)
        refs = [weakref.ref(x), weakref.ref(y)]
        pipe.step(x, target=y)
        del x, y
        gc.collect()
        assert all(ref() is None for ref in refs)


def test_a_failed_step_keeps_no_microbatch_no_output_and_no_batch():
    fail = [False]

    class Boom(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            if fail[0] and self.calls % 4 == 3:
                raise RuntimeError("boom")
            return self.linear(x)

    x, y = batch(8)
    with pipert.Pipeline(
        [nn.Linear(8, 8), Boom()], schedule="gpipe", num_microbatches=4, loss_fn=mse
    ) as pipe:
        pipe.step(x, target=y, return_outputs=True)
        before = num_tensors()
        fail[0] = True
        for _ in range(3):
            with pytest.raises(pipert.PipelineError, match="boom"):
                pipe.step(x, target=y, return_outputs=True)
            assert pipe._ranks._runtime.num_in_flight() == 0
        fail[0] = False
        pipe.stages[1].calls = 0
        assert num_tensors() == before
        outputs = pipe.step(x, target=y, return_outputs=True).outputs
        assert outputs.shape == (8, 8)


def test_nothing_is_in_flight_between_steps():
    x, y = batch(8)
    with make_pipe() as pipe:
        assert pipe._ranks._runtime.num_in_flight() == 0
        pipe.step(x, target=y)
        assert pipe._ranks._runtime.num_in_flight() == 0


EXIT = """
    import sys
    import torch
    from torch import nn
    import pipert

    def fails(x):
        raise RuntimeError("boom")
    how = sys.argv[1]
    stages = [nn.Linear(2, 2), fails if how == "failed" else nn.Linear(2, 2)]
    pipe = pipert.Pipeline(
        stages, num_microbatches=2, loss_fn=nn.functional.mse_loss
    )
    x = torch.ones(4, 2)
    try:
        if how != "idle":
            pipe.step(x, target=x)
    except pipert.PipelineError:
        print("failed")
    if how == "cycle":
        pipe.me = pipe
    if how == "raises":
        raise SystemExit(3)
    print("end", flush=True)
"""


@pytest.mark.parametrize("how", ["idle", "stepped", "failed", "cycle", "raises"])
def test_an_interpreter_with_an_open_pipeline_ends_quietly(how):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXIT), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == (3 if how == "raises" else 0)
    assert done.stdout.split() == {"failed": ["failed", "end"], "raises": []}.get(how, ["end"])


GROUP = """
    import sys
    from pathlib import Path
    import torch
    import torch.distributed as dist
    import pipert

    def threads():
        return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]

    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    group = pipert.init()
    weight = torch.nn.Parameter(torch.zeros(2))
    torch.optim.SGD([weight])  # imports what holds the default group that it finds
    dist.all_reduce(torch.ones(2), group=group)
    del group
    print("pt_gloo_runloop" in threads())
    dist.destroy_process_group()
    print("pt_gloo_runloop" in threads())
"""


def test_a_destroyed_group_leaves_no_thread_that_could_end_the_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GROUP), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["True", "False"]), done.stderr
