"""Shapes may change with every message; what doesn't fit is said on every rank, with its stages."""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from models import WIDTH, data, is_last, layers, plain_loop, same, same_gradients, within
from shape_walk import Loop, Mixer, Shifter, Walk, check_walk, loss_fn, random_walk
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

import pipert

TRANSPORTS = ["shm", "process_group"]


def _walks_equal_plain_loop(
    kind: Callable[[int], nn.Module],
    schedule: str,
    walks: list[Walk],
    per_rank: int = 1,
    microbatches: int = 4,
    **options: Any,
) -> None:
    group = pipert.init()
    stages = [kind(seed) for seed in range(group.size() * per_rank)]
    loop = Loop(stages)
    with pipert.Pipeline(
        stages,
        schedule=schedule,
        num_microbatches=microbatches,
        loss_fn=loss_fn,
        group=group,
        **{"timeout_s": 20, **options},
    ) as pipe:
        check_walk(pipe, loop, walks)


# --- good passes ----------------------------------------------------------------------------------

SCHEDULES = [
    ("1f1b", 1),
    ("interleaved_1f1b", 2),
    ("zb_h1", 1),
    ("zb_v", 2),
    ("dualpipe_v", 2),
]


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("schedule", "per_rank"), [*SCHEDULES, ("dualpipe", 1), ("chimera", 1)])
def test_two_ranks_take_any_walk(transport: str, schedule: str, per_rank: int) -> None:
    for kind in (Mixer, Shifter):
        walks = random_walk(5, 4, 8)
        _walks_equal_plain_loop(kind, schedule, walks, per_rank, transport=transport)


@pytest.mark.processes(3)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("schedule", "per_rank"), SCHEDULES)
def test_three_ranks_take_any_walk(transport: str, schedule: str, per_rank: int) -> None:
    walks = random_walk(6, 6, 6)
    _walks_equal_plain_loop(Shifter, schedule, walks, per_rank, microbatches=6, transport=transport)


@pytest.mark.processes(4)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("schedule", "per_rank"), [*SCHEDULES, ("dualpipe", 1), ("chimera", 1)])
def test_four_ranks_take_any_walk(transport: str, schedule: str, per_rank: int) -> None:
    walks = random_walk(7, 8, 6)
    _walks_equal_plain_loop(Shifter, schedule, walks, per_rank, microbatches=8, transport=transport)


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("recompute", ["all", "except_last"])
def test_recomputed_stages_take_any_walk(transport: str, recompute: str) -> None:
    for schedule, per_rank in (("1f1b", 1), ("zb_v", 2)):
        walks = random_walk(8, 4, 6)
        _walks_equal_plain_loop(
            Shifter, schedule, walks, per_rank, transport=transport, recompute=recompute
        )


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("schedule", "per_rank"), [("1f1b", 1), ("zb_v", 2)])
def test_native_stages_take_any_walk(transport: str, schedule: str, per_rank: int) -> None:
    walks = [walk for walk in random_walk(9, 4, 20) if walk.dtype == "float32"]
    _walks_equal_plain_loop(
        Mixer, schedule, walks, per_rank, transport=transport, stage_kind="native"
    )


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_messages_grow_a_thousandfold_and_shrink_again(transport: str) -> None:
    """From less than a posted receive or a block of shared memory has room for, to 8 MB, and back.

    The large ones come alone among small ones, in the middle of a pass.
    """
    small, large = (1, 1), (512, 512)
    mixed = (small, large, small, small, (3, 7), small, large, (9, 1))
    walks = [
        Walk("step", (small,) * 8),
        Walk("step", mixed),
        Walk("evaluate", mixed[::-1]),
        *[Walk("step", (small,) * 8)] * 10,  # idle memory goes back after some passes
        Walk("step", mixed[::-1]),
        Walk("step", ((8, 2),)),
    ]
    _walks_equal_plain_loop(
        Adder, "1f1b", walks, microbatches=8, transport=transport, receive_slots=1
    )
    _walks_equal_plain_loop(
        Adder, "interleaved_1f1b", walks, per_rank=2, microbatches=8, transport=transport
    )


class Adder(nn.Module):
    """Cheap for any size."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_training_and_evaluation_alternate_with_sizes_of_their_own(transport: str) -> None:
    train, check = ((2, 30),) * 4, ((64, 3), (1, 1), (64, 200), (2, 2))
    walks = [
        Walk(kind, shapes)
        for _ in range(6)
        for kind, shapes in (("step", train), ("evaluate", check))
    ]
    _walks_equal_plain_loop(Mixer, "1f1b", walks, transport=transport)


@pytest.mark.processes(2)
def test_rows_of_a_batch_that_is_cut_on_each_rank_alone() -> None:
    """Each rank has what its own stages need; 11 rows in 4 are 3, 3, 3, 2."""
    group = pipert.init()
    model = layers(2)
    reference = copy.deepcopy(model)
    with pipert.Pipeline(
        pipert.split(model, 2),
        num_microbatches=4,
        loss_fn=functional.mse_loss,
        group=group,
        timeout_s=20,
    ) as pipe:
        for rows in (11, 4, 1000, 5):
            x, y = data(rows, seed=rows)
            result = pipe.step(x) if group.rank() == 0 else pipe.step(target=y)
            losses = plain_loop(reference, x, y, 4)
            same(result.losses, losses if is_last(pipe) else None)
            same_gradients(pipe, reference)


# --- what doesn't fit -----------------------------------------------------------------------------


class Stage(nn.Module):
    """A layer that may do something to its output beside its work."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layer = layers(1, seed=seed)
        self.after: Callable[[Tensor], Any] | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        y = self.layer(x if mask is None else x * mask)
        return y if self.after is None else self.after(y)


class Setup:
    """A pipeline with one such stage a rank, and the plain loop beside it."""

    def __init__(self, microbatches: int = 4, **options: Any) -> None:
        self.group = pipert.init()
        self.rank, self.size = self.group.rank(), self.group.size()
        self.stages = [Stage(seed) for seed in range(self.size)]
        self.reference = nn.Sequential(*copy.deepcopy(self.stages))
        self.count = microbatches
        self.pipe = pipert.Pipeline(
            self.stages,
            num_microbatches=microbatches,
            loss_fn=functional.mse_loss,
            group=self.group,
            **{"timeout_s": 20, **options},
        )

    def works(self) -> None:
        """The next step has the right bits."""
        for stage in self.stages:
            stage.after = None
        x, y = data(13)
        for parameter in (*self.pipe.parameters(), *self.reference.parameters()):
            parameter.grad = None
        result = self.pipe.step(x, target=y)
        losses = plain_loop(self.reference, x, y, self.count)
        same(result.losses, losses if is_last(self.pipe) else None, "losses after a mismatch")
        same_gradients(self.pipe, self.reference)

    def refused(self, call: Callable[[], object], origin: int | None, *texts: str) -> None:
        """All ranks get a PipelineError within a second that has all texts, and work again.

        origin: the rank that found out; None: whichever is first.
        """
        with within(1.0), pytest.raises(pipert.PipelineError) as raised:
            call()
        error = raised.value
        for text in texts:
            assert text in str(error), error
        if origin is not None:
            assert error.rank == origin, error
            assert (error.kind != "remote") == (self.rank == origin), error
        self.works()


@pytest.mark.processes(3)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stage_that_cannot_take_what_it_gets_names_both_stages_everywhere(
    transport: str,
) -> None:
    setup = Setup(transport=transport)
    x, y = data(13)
    setup.works()
    setup.stages[0].after = lambda y: y[:, :5] if len(y) == 3 else y  # all but the first
    setup.refused(
        lambda: setup.pipe.step(x, target=y),
        1,
        "rank 1, stage 1, microbatch 1, 1F1 (forward)",
        "got input: float32[3, 5] and expected float32[..., 8]",
        "stage 1 got float32[3, 5] from stage 0 on rank 0",
    )


@pytest.mark.processes(2)
def test_a_stage_of_another_dtype_names_both_stages_on_both_ranks() -> None:
    """As where one rank's default dtype is another one."""
    group = pipert.init()

    def build() -> nn.Module:
        torch.manual_seed(1)
        return nn.Linear(WIDTH, WIDTH)

    x, y = data(8)
    torch.set_default_dtype([torch.float32, torch.float64][group.rank()])
    try:
        with (
            pipert.Pipeline(
                [build, build],
                num_microbatches=4,
                loss_fn=functional.mse_loss,
                group=group,
                timeout_s=20,
            ) as pipe,
            within(1.0),
            pytest.raises(pipert.PipelineError) as raised,
        ):
            pipe.step(x, target=y)
    finally:
        torch.set_default_dtype(torch.float32)
    for text in (
        "rank 1, stage 1, microbatch 0, 1F0 (forward)",
        "got input: float32[2, 8] and expected float64[..., 8]",
        "stage 1 got float32[2, 8] from stage 0 on rank 0",
    ):
        assert text in str(raised.value), raised.value


@pytest.mark.processes(2)
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_gradients_that_do_not_fit_name_both_stages_on_both_ranks(schedule: str) -> None:
    """A recomputed stage that returns another number of rows: torch would add the rows up."""
    setup = Setup(schedule=schedule, recompute=[0])
    setup.works()
    calls = []

    def shrink(y: Tensor) -> Tensor:
        calls.append(len(y))
        is_recomputing = pipert.current_microbatch().is_recomputing
        return y[:1] if is_recomputing else y

    setup.stages[0].after = shrink
    x, y = data(13)
    setup.refused(
        lambda: setup.pipe.step(x, target=y),
        0,
        "rank 0, stage 0, microbatch 0",
        "the gradients of microbatch 0 don't fit what stage 0 returned when it ran again",
        "expected float32[1, 8] for tensor 0, got float32[4, 8]",
        "stage 0 got the gradients float32[4, 8] from stage 1 on rank 1",
    )


@pytest.mark.processes(3)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_keyword_arguments_of_other_rows_are_refused_on_a_middle_rank(transport: str) -> None:
    """Rows of one broadcast: without a check, each microbatch would take a mask of one row."""
    setup = Setup(transport=transport)
    setup.works()
    x, y = data(16)
    mask = torch.ones(4 if setup.rank == 1 else 16, WIDTH)
    setup.refused(
        lambda: setup.pipe.step(x, target=y, mask=mask),
        1,
        "rank 1, stage 1, microbatch 0, 1F0 (forward)",
        "ranks were given different batches: a batch of 16 rows on the first stage's rank, and a "
        "batch of 4 rows for stage 1",
        "stage 1 got float32[4, 8] from stage 0 on rank 0",
    )
    # What a rank's own stages don't take is not looked at.
    needless = y if setup.rank == 2 else y[:4]
    setup.pipe.step(x, target=needless, mask=torch.ones(16, WIDTH))
    setup.works()


@pytest.mark.processes(2)
@pytest.mark.parametrize("cut", [0, 1])
def test_a_batch_in_pieces_on_one_rank_alone_is_refused(cut: int) -> None:
    setup = Setup()
    setup.works()
    x, y = data(16)
    pieces: dict[str, Any] = {
        "microbatches": list(x.tensor_split(4)),
        "target": list(y.tensor_split(4)),
    }
    whole = "a batch of 16 rows"
    already = "a batch that is cut already"
    first, last = (already, whole) if cut == 0 else (whole, already)
    for call in (setup.pipe.step, setup.pipe.evaluate):
        setup.refused(
            lambda call=call: call(**pieces) if setup.rank == cut else call(x, target=y),
            1,
            f"different batches: {first} on the first stage's rank, and {last} for stage 1",
        )


@pytest.mark.processes(2)
@pytest.mark.parametrize("odd", [0, 1])
def test_another_number_of_microbatches_on_one_rank_is_told_to_both(odd: int) -> None:
    setup = Setup()
    setup.works()
    x, y = data(16)
    number = 3 if setup.rank == odd else 4
    with within(1.0), pytest.raises((ValueError, pipert.PipelineError)) as raised:
        setup.pipe.step(
            microbatches=list(x.tensor_split(number)), target=list(y.tensor_split(number))
        )
    assert (raised.type is ValueError) == (setup.rank == odd)
    text = "must have one entry for each of the 4 microbatches, got 3"
    assert text in str(raised.value), raised.value
    if setup.rank != odd:
        assert f"another rank failed: rank {odd}: ValueError" in str(raised.value)
    setup.works()


@pytest.mark.processes(4)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zb_h1", "dualpipe"])
def test_a_rank_that_evaluates_while_others_train_is_said_with_both_stages(
    transport: str, schedule: str
) -> None:
    group = pipert.init()
    count = 8 if schedule == "interleaved_1f1b" else 4
    model = layers(count)
    with pipert.Pipeline(
        pipert.split(model, count),
        schedule=schedule,
        num_microbatches=8,
        loss_fn=functional.mse_loss,
        group=group,
        transport=transport,
        timeout_s=20,
    ) as pipe:
        for odd, rows in ((1, 16), (3, 4000), (0, 9)):
            x, y = data(rows)
            pipe.step(x, target=y)
            pipe.evaluate(x, target=y)
            call = pipe.evaluate if group.rank() == odd else pipe.step
            with within(1.5), pytest.raises(pipert.PipelineError) as raised:
                call(x, target=y)
            text = str(raised.value)
            assert "don't run the same step" in text, text
            assert "of stage" in text, text
            assert "microbatch" in text, text
            assert ", stage " in text, text
            pipe.step(x, target=y)


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_rank_that_makes_fewer_steps_and_closes_is_told_to_the_other(transport: str) -> None:
    setup = Setup(transport=transport)
    setup.works()
    store = torch.distributed.distributed_c10d._get_default_store()
    if setup.rank == 0:
        x, y = data(13)
        with within(2.0), pytest.raises(pipert.PipelineError) as raised:
            setup.pipe.step(x, target=y)
        assert "rank 1" in str(raised.value), raised.value
        store.set(f"rank 0 was told over {transport}", "")
    else:
        setup.pipe.close()
        store.wait([f"rank 0 was told over {transport}"])
    Setup(transport=transport).works()


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", ["sparse", "quantized", "nested", "fake"])
def test_tensors_that_are_more_or_less_than_their_elements_are_refused(
    transport: str, kind: str
) -> None:
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "sparse": lambda y: y.detach().to_sparse(),
        "quantized": lambda y: torch.quantize_per_tensor(y.detach(), 0.1, 0, torch.quint8),
        "nested": lambda y: torch.nested.nested_tensor([y.detach(), y.detach()[:1]]),
        "fake": lambda y: FakeTensorMode().from_tensor(y.detach()),
    }
    made[kind](torch.zeros(2, WIDTH))  # the first of a process takes its time
    setup = Setup(transport=transport)
    setup.works()
    setup.stages[0].after = made[kind]
    setup.refused(
        lambda: setup.pipe(data(13)[0]),
        0,
        "rank 0, while it sent the activation of stage 0, microbatch 0, to stage 1 on rank 1",
        "expected dense ones with elements of their own, which alone can leave the process",
    )


@contextmanager
def _limited_memory(num_bytes: int) -> Iterator[None]:
    """This process may have so much more address space."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.processes(2)
def test_a_message_that_there_is_no_memory_for_is_told_to_both_ranks() -> None:
    setup = Setup(transport="process_group")
    setup.works()
    setup.stages[0].after = lambda y: y.repeat(1_000_000, 1)  # 128 MB

    def call() -> None:
        with _limited_memory(64 << 20) if setup.rank == 1 else nullcontext():
            setup.pipe(data(16)[0])

    setup.refused(
        call,
        1,
        "rank 1, stage 1, microbatch 0, 1F0 (forward), while it waited to run 1F0, for the "
        "activation of stage 0, microbatch 0, from rank 0",
        "can't allocate memory",
    )


@pytest.mark.processes(2)
def test_ranks_of_different_software_are_refused() -> None:
    group = pipert.init()
    for name, owner, value in (
        ("version of pipert", pipert, "0.0.7"),
        ("version of torch", torch, "1.2.3+cpu"),
    ):
        before = owner.__version__
        with pytest.MonkeyPatch.context() as patch:
            if group.rank() == 1:
                patch.setattr(owner, "__version__", value)
            with within(1.0), pytest.raises(ValueError, match="run different software") as raised:
                pipert.Pipeline(pipert.split(layers(2), 2), num_microbatches=2, group=group)
        there = before.partition("+")[0]
        expected = f"{name} is {there} on rank 0 and {value.partition('+')[0]} on rank 1"
        assert expected in str(raised.value), raised.value
