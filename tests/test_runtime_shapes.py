"""Shapes, dtypes and structures may change with every microbatch; the bits are the plain loop's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_walk import WIDTH, Loop, Mixer, Shifter, Walk, check_walk, loss_fn, random_walk
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(120)

# name, stages of the model a rank
SCHEDULES = {
    "gpipe": 1,
    "1f1b": 1,
    "eager_1f1b": 1,
    "interleaved_1f1b": 2,
    "looped_bfs": 2,
    "hanayo": 2,
    "zb_h1": 1,
    "zb_auto": 1,
    "zb_interleaved": 2,
    "zb_v": 2,
    "dualpipe_v": 2,
    "dualpipe": 1,
    "chimera": 1,
}


def make_pipe(kind, schedule, ranks=2, microbatches=4, **options):
    """A pipeline of stages of a kind, and the plain loop over copies of them."""
    stages = [kind(seed) for seed in range(ranks * SCHEDULES[schedule])]
    pipe = pipert.Pipeline(
        stages,
        schedule=schedule,
        num_ranks=ranks,
        num_microbatches=microbatches,
        loss_fn=loss_fn,
        **options,
    )
    return pipe, Loop(stages)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", [Mixer, Shifter])
def test_sizes_dtypes_and_structures_change_as_they_like_under_every_schedule(schedule, kind):
    pipe, loop = make_pipe(kind, schedule)
    with pipe:
        check_walk(pipe, loop, random_walk(1, 4, 12))


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zb_h1", "zb_v", "dualpipe"])
@pytest.mark.parametrize("kind", [Mixer, Shifter])
def test_forwards_that_run_twice_take_the_sizes_of_their_own_microbatch(schedule, kind):
    pipe, loop = make_pipe(kind, schedule, recompute="all")
    with pipe:
        check_walk(pipe, loop, random_walk(2, 4, 8))


@pytest.mark.parametrize("schedule", ["1f1b", "zb_v"])
def test_activations_of_any_size_go_to_the_host_and_back(schedule):
    stages = [Shifter(seed) for seed in range(2 * SCHEDULES[schedule])]
    built = pipert.Schedule.build(schedule, num_ranks=2, num_microbatches=4)
    with pipert.Pipeline(
        stages, schedule=built.with_offload(), num_microbatches=4, num_ranks=2, loss_fn=loss_fn
    ) as pipe:
        check_walk(pipe, Loop(stages), random_walk(3, 4, 6))


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zb_v", "dualpipe"])
def test_native_stages_take_any_size(schedule):
    """In the pass that first meets sizes of a kind (a length of 1) the module runs, then graphs."""
    pipe, loop = make_pipe(Mixer, schedule, stage_kind="native")
    walks = [walk for walk in random_walk(4, 4, 30) if walk.dtype == "float32"]
    assert len({shape for walk in walks for shape in walk.shapes}) > 10
    with pipe:
        check_walk(pipe, loop, walks)
        for walk in walks:
            check_walk(pipe, loop, [walk])
            assert set(pipe.stage_kinds.values()) == {"native"}, walk


def test_a_native_stage_meets_another_dtype_and_number_of_dimensions():
    pipe, loop = make_pipe(Mixer, "1f1b", stage_kind="native")
    shapes = ((2, 3), (5, 3), (2, 4), (3, 9))
    with pipe:
        for dtype in ("float32", "float64", "bfloat16", "float32"):
            check_walk(pipe, loop, [Walk("step", shapes, dtype), Walk("evaluate", shapes, dtype)])
        assert set(pipe.stage_kinds.values()) == {"native"}
        x = torch.randn(4, WIDTH)  # without a length: other ranks of tensors
        assert torch.equal(
            pipe(x), torch.cat([loop.forward(piece).detach() for piece in x.split(1)])
        )


def test_halves_of_a_pair_have_sizes_of_their_own():
    pipe, loop = make_pipe(
        Shifter,
        "dualpipe_v",
        microbatches=6,
        overlap_fn=lambda forward, backward: (backward(), forward()),
    )
    with pipe:
        check_walk(pipe, loop, random_walk(10, 6, 8))


def test_messages_of_any_size_cross_a_slow_link():
    pipe, loop = make_pipe(Shifter, "1f1b", network=pipert.Costs(latency=1e-4, bandwidth=1e9))
    with pipe:
        check_walk(pipe, loop, random_walk(11, 4, 8))


def test_gradients_add_up_over_steps_of_different_sizes():
    pipe, loop = make_pipe(Mixer, "1f1b", ranks=3, microbatches=5)
    walks = [Walk("step", shapes) for shapes in (((11, 3),), ((1, 9),) * 5, ((40, 2),))]
    with pipe:
        check_walk(pipe, loop, walks, accumulate=True)


def test_microbatches_without_rows_cross():
    class Summed(nn.Module):
        def forward(self, x):
            return x * 2.0

    stages = [Mixer(0), Summed(), Mixer(1)]
    pieces = [torch.randn(rows, 3, WIDTH) for rows in (0, 2, 0, 1)]
    loop = Loop(stages)
    with pipert.Pipeline(
        stages, num_microbatches=4, loss_fn=lambda output: output.square().sum()
    ) as pipe:
        result = pipe.step(microbatches=pieces)
    losses = [loop.forward(piece).square().sum() for piece in pieces]
    assert torch.equal(result.losses, torch.stack(losses).detach())
    for loss in losses:
        (loss / 4).backward()
    for ours, theirs in zip(stages, loop.stages, strict=True):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)


@st.composite
def walks(draw, microbatches):
    sizes = st.tuples(st.integers(1, 9), st.integers(1, 12))
    cut = st.tuples(*[sizes] * microbatches) if microbatches > 1 else st.nothing()
    whole = st.tuples(st.tuples(st.integers(microbatches, 20), st.integers(1, 12)))
    kinds = st.sampled_from(["step", "evaluate"])
    dtypes = st.sampled_from(["float32", "float64", "bfloat16"])
    return draw(st.lists(st.builds(Walk, kinds, cut | whole, dtypes), min_size=1, max_size=4))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_walk_under_any_schedule_has_the_bits_of_the_plain_loop(data):
    schedule = data.draw(st.sampled_from(sorted(SCHEDULES)))
    microbatches = data.draw(st.sampled_from([4, 6] if "dualpipe" in schedule else [2, 4]))
    pipe, loop = make_pipe(
        data.draw(st.sampled_from([Mixer, Shifter])),
        schedule,
        microbatches=microbatches,
        recompute=data.draw(st.sampled_from(["none", "all", "except_last"])),
        receive_slots=data.draw(st.integers(1, 3)),
    )
    with pipe:
        check_walk(pipe, loop, data.draw(walks(microbatches)))


# --- what doesn't fit -----------------------------------------------------------------------------


class Changes(nn.Module):
    """A stage that returns something else when it is recomputed."""

    def __init__(self, change):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.change = change

    def forward(self, x):
        y = self.layer(x)
        return self.change(y) if pipert.current_microbatch().is_recomputing else y


class Takes(nn.Module):
    """Takes anything that broadcasts."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, *xs):
        return self.layer(sum(x.float() for x in xs))


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda y: y[:1],  # which 3 rows add up to, for torch
            r"expected float32\[1, 8\] for tensor 0, got float32\[3, 8\]",
        ),
        (
            lambda y: y.double(),  # to which torch casts
            r"expected float64\[3, 8\] for tensor 0, got float32\[3, 8\]",
        ),
        (
            lambda y: y.detach(),
            r"expected none for tensor 0, which needs no gradient, got float32\[3, 8\]",
        ),
        (
            lambda y: y.reshape(2, -1, 4),
            r"expected float32\[2, 3, 4\] for tensor 0, got float32\[3, 8\]",
        ),
    ],
    ids=["rows", "dtype", "detached", "dimensions"],
)
def test_a_recomputed_stage_that_returns_something_else_is_told_apart(schedule, change, text):
    stages = [Changes(change), Takes()]
    x = torch.randn(6, WIDTH)
    with pipert.Pipeline(
        stages,
        schedule=schedule,
        num_microbatches=2,
        loss_fn=lambda output: output.square().mean(),
        recompute=[0],
    ) as pipe:
        with pytest.raises(pipert.PipelineError, match=text) as raised:
            pipe.step(x)
        error = raised.value
        assert (error.kind, error.rank, error.stage, error.microbatch) == ("action", 0, 0, 0)
        assert "the gradients of microbatch 0 don't fit what stage 0 returned when it ran" in str(
            error
        )
        assert "stage 0 got the gradients float32[3, 8] from stage 1 on rank 1" in str(error)
        stages[0].change = lambda y: y
        pipe.step(x)


def test_what_a_failing_stage_was_given_is_said_with_its_origin():
    class Fails(nn.Module):
        def forward(self, value):
            raise RuntimeError("no")

    def first(x):
        return {"a": x, "b": [x[:, 0].long(), None]}

    with (
        pipert.Pipeline([first, Fails()], num_microbatches=2) as pipe,
        pytest.raises(pipert.PipelineError) as raised,
    ):
        pipe(torch.randn(6, WIDTH))
    assert str(raised.value).endswith(
        "\n  stage 1 got float32[3, 8], int64[3] from stage 0 on rank 0"
    )


def test_what_a_failing_backward_was_given_is_said_with_its_origin():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no")

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model[0]

        def forward(self, x):
            return Fails.apply(self.layer(x)), len(x)

    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model[1]

        def forward(self, x, count):
            return self.layer(x) / count

    with (
        pipert.Pipeline(
            [First(), Second()], num_microbatches=2, loss_fn=lambda output: output.sum()
        ) as pipe,
        pytest.raises(pipert.PipelineError, match="0B0") as raised,
    ):
        pipe.step(torch.randn(6, WIDTH))
    assert str(raised.value).endswith(
        "\n  stage 0 got the gradients float32[3, 8] from stage 1 on rank 1"
    )


def test_the_half_of_a_pair_that_failed_says_what_it_was_given():
    class Fails(Mixer):
        def forward(self, x):
            if len(x) == 5:
                raise RuntimeError("five")
            return super().forward(x)

    stages = [Mixer(0), Fails(1), Mixer(2), Mixer(3)]
    pieces = [torch.randn(rows, 2, WIDTH) for rows in (1, 2, 3, 4, 5, 6)]
    with (
        pipert.Pipeline(
            stages,
            schedule="dualpipe_v",
            num_microbatches=6,
            num_ranks=2,
            loss_fn=lambda output: output.mean(),
            overlap_fn=lambda forward, backward: (forward(), backward()),
        ) as pipe,
        pytest.raises(pipert.PipelineError, match="1F4") as raised,
    ):
        pipe.step(microbatches=pieces)
    assert str(raised.value).endswith("\n  stage 1 got float32[5, 2, 8] from stage 0 on rank 0")
