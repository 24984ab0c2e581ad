"""Arguments of a batch have names with wired stages, and each stage takes its own."""

import pytest
import torch
from wired import ARGUMENTS, PlainLoop, ids_and_mask, wired_stages

import pipert

pytestmark = pytest.mark.timeout(60)


def square(output):
    return output.square().mean()


def square_of(output, _):
    return square(output)


@pytest.fixture
def stages():
    return wired_stages()


@pytest.fixture
def pipe(stages):
    with pipert.Pipeline(stages, num_microbatches=2, loss_fn=square) as pipeline:
        yield pipeline


def halves(*tensors):
    return zip(*(tensor.tensor_split(2) for tensor in tensors), strict=True)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb_h1"])
@pytest.mark.parametrize("kind", ["module", "native"])
def test_gradients_equal_plain_loop_bit_for_bit_with_arguments_of_every_stage(schedule, kind):
    stages = wired_stages()
    loop = PlainLoop(stages)
    ids, mask = ids_and_mask(4)
    with pipert.Pipeline(
        stages, schedule=schedule, num_microbatches=2, loss_fn=square, stage_kind=kind
    ) as pipe:
        for _ in range(3):
            result = pipe.step(ids, mask, reduce="sum", options={"scale": 0.5})
            entries = [
                ((i, m, None, None, {"scale": 0.5}, "sum"), {}) for i, m in halves(ids, mask)
            ]
            assert torch.equal(result.losses, loop.step(entries, square_of))
            loop.assert_same_gradients(pipe)


def test_an_argument_may_be_given_by_position_or_by_name(pipe):
    ids, mask = ids_and_mask(4)
    expected = pipe(ids, mask)
    assert torch.equal(pipe(ids, mask=mask), expected)
    assert torch.equal(pipe(mask=mask, ids=ids), expected)
    assert torch.equal(pipe.evaluate(mask=mask, ids=ids, return_outputs=True).outputs, expected)


def test_an_argument_that_no_stage_takes_is_ignored_if_the_model_has_it(pipe):
    ids, mask = ids_and_mask(4)
    expected = pipe(ids, mask)
    assert torch.equal(pipe(ids, mask, unused=torch.ones(3, 9)), expected)
    assert torch.equal(pipe(ids, mask, None, object()), expected)


def test_an_argument_with_a_default_need_not_be_given(pipe):
    ids, mask = ids_and_mask(4)
    positions = torch.arange(5.0).expand(4, 5)
    assert not torch.equal(pipe(ids, mask, positions), pipe(ids, mask))


def test_arguments_that_are_no_tensors_go_to_their_stages_whole(pipe):
    ids, mask = ids_and_mask(4)
    assert pipe(ids, mask, reduce="sum").shape == (4, 7)
    doubled = pipe(ids, mask, options={"scale": 2.0})
    assert not torch.equal(doubled, pipe(ids, mask))


@pytest.mark.parametrize(
    "entry",
    [
        lambda ids, mask: (ids, mask),
        lambda ids, mask: {"mask": mask, "ids": ids},
        lambda ids, mask: pipert.Microbatch((ids,), {"mask": mask}),
        lambda ids, mask: pipert.Microbatch((ids, mask)),
        lambda ids, mask: pipert.Microbatch(kwargs={"ids": ids, "mask": mask}),
    ],
    ids=["tuple", "dict", "both", "args", "kwargs"],
)
def test_a_batch_that_is_cut_already_has_names_too(stages, entry):
    loop = PlainLoop(stages)
    pieces = [ids_and_mask(3, seed=1), ids_and_mask(1, length=2, seed=2)]
    with pipert.Pipeline(stages, num_microbatches=2, loss_fn=square) as pipe:
        result = pipe.step(microbatches=[entry(*piece) for piece in pieces])
        losses = loop.step([(piece, {}) for piece in pieces], square_of)
        assert torch.equal(result.losses, losses)
        loop.assert_same_gradients(pipe)


def test_unwired_stages_take_microbatches_with_positions_and_names():
    def first(x, factor):
        return x * factor

    def second(x, shift):
        return x + shift

    x = torch.arange(4.0)
    with pipert.Pipeline([first, second], num_microbatches=2) as pipe:
        cut = [
            pipert.Microbatch((p,), {"factor": 2.0, "shift": m}) for m, p in enumerate(x.split(2))
        ]
        outputs = pipe.evaluate(microbatches=cut, return_outputs=True).outputs
        assert torch.cat(outputs).tolist() == [0, 2, 5, 7]


def test_recomputed_stages_get_the_same_arguments_again(stages):
    loop = PlainLoop(stages)
    ids, mask = ids_and_mask(4)
    with pipert.Pipeline(stages, num_microbatches=2, loss_fn=square, recompute="all") as pipe:
        pipe.step(ids, mask)
        loop.step([(piece, {}) for piece in halves(ids, mask)], square_of)
        loop.assert_same_gradients(pipe)


class Choosy(torch.nn.Module):
    """Does other things where it is given more."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)

    def forward(self, x, mask=None, scale=1.0, unused=None, *, shift=None):
        h = self.first(x)
        h = h if mask is None else h * mask
        h = self.second(h.tanh()) * scale
        return h if shift is None else h + shift


def test_what_an_example_left_out_is_refused_and_not_ignored():
    model, x = Choosy(), torch.randn(4, 4)
    stages = pipert.split(model, at=["second"], example_kwargs={"x": x, "unused": x}, by="trace")
    assert stages.fixed == {"mask": None, "scale": 1.0, "shift": None}
    with pipert.Pipeline(stages, num_microbatches=2) as pipe:
        assert torch.equal(pipe(x), model(x))
        assert torch.equal(pipe(x, None, 1.0, 3 * x, shift=None), model(x))
        for kwargs, got in [
            ({"mask": x}, "mask=None: expected no other value, got a Tensor"),
            ({"shift": x}, "shift=None: expected no other value, got a Tensor"),
            ({"scale": 2.0}, r"scale=1\.0: expected no other value, got 2\.0"),
            ({"scale": 1}, r"scale=1\.0: expected no other value, got 1 "),
        ]:
            with pytest.raises(ValueError, match=f"the stages were made with {got}"):
                pipe(x, **kwargs)
        with pytest.raises(ValueError, match=r"microbatches\[1\]: the stages were made with mask"):
            pipe(microbatches=[(x,), (x, x)])


# --- bad input ------------------------------------------------------------------------------------

IDS, MASK = ids_and_mask(4)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((IDS,), {}, ValueError, "stage 1 needs the argument 'mask': expected it on the stage's"),
        ((), {"mask": MASK}, ValueError, "stage 0 needs the argument 'ids'"),
        ((), {}, ValueError, "stage 0 needs the argument 'ids'"),
        ((IDS, MASK), {"mask": MASK}, TypeError, "got the argument 'mask' by position and by name"),
        (
            (IDS, MASK),
            {"masks": MASK},
            TypeError,
            "neither the model's forward nor a stage takes the argument 'masks'; they take: ids, "
            "mask, options, positions, reduce, unused",
        ),
        (
            (IDS, MASK, *[None] * 5),
            {},
            TypeError,
            rf"the model takes 6 arguments by position \({', '.join(ARGUMENTS)}\), got 7",
        ),
        ((IDS, MASK[:3]), {}, ValueError, r"kwargs\['mask'\] has 3 rows, expected 4"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(pipe, args, kwargs, error, message):
    with pytest.raises(error, match=message):
        pipe.step(*args, **kwargs)
    pipe.step(IDS, MASK)  # it goes on


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (
            [(IDS, MASK), (IDS,)],
            ValueError,
            r"microbatches\[1\]: stage 1 needs the argument 'mask'",
        ),
        (
            [(IDS, MASK), pipert.Microbatch((IDS,), {"ids": IDS})],
            TypeError,
            r"microbatches\[1\]: got the argument 'ids' by position and by name",
        ),
        (
            [{"id": IDS}, {"id": IDS}],
            TypeError,
            r"microbatches\[0\]: neither the model's forward nor a stage takes the argument 'id'",
        ),
        (
            [pipert.Microbatch([IDS, MASK]), (IDS, MASK)],
            TypeError,
            r"microbatches\[0\] must have a tuple of args and a dict of kwargs, got list and",
        ),
        ([(IDS, MASK)], ValueError, "microbatches must have one entry for each of the 2"),
    ],
)
def test_microbatches_that_do_not_fit_are_refused(pipe, entries, error, message):
    with pytest.raises(error, match=message):
        pipe.step(microbatches=entries)
