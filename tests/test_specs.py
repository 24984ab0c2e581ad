"""Specs say how a batch is cut and outputs are merged, at any place in it."""

import collections
import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from wired import wired_stages

import pipert
from pipert import REPLICATE, CustomCut, Cut

pytestmark = pytest.mark.timeout(120)


def seen_by(*args, microbatches=2, **kwargs):
    """The arguments of a stage, by microbatch: args and kwargs as they came.

    Keywords that end in `_spec` are Pipeline's, the others step's.
    """
    seen = []

    def stage(*args, **kwargs):
        seen.append((args, kwargs))
        return torch.zeros(1)

    specs = {name: value for name, value in kwargs.items() if name.endswith("_spec")}
    given = {name: value for name, value in kwargs.items() if name not in specs}
    with pipert.Pipeline([stage], num_microbatches=microbatches, **specs) as pipe:
        pipe(*args, **given)
    return seen


def columns(n):
    """Of shape (2, n), all different."""
    return torch.arange(2.0 * n).reshape(2, n)


# --- one tensor -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [(Cut(1),), (1,), (Cut(-1),), Cut(1), 1, [1]])
def test_a_tensor_is_cut_along_the_dimension_that_its_spec_says(spec):
    x = columns(5)
    seen = seen_by(x, args_spec=spec)
    for (args, _), piece in zip(seen, x.tensor_split(2, 1), strict=True):
        assert torch.equal(args[0], piece)


def test_without_a_spec_dimension_0_is_cut():
    x = columns(5)
    assert [args[0].shape for args, _ in seen_by(x)] == [(1, 5), (1, 5)]
    assert [args[0].shape for args, _ in seen_by(x, args_spec=(None,))] == [(1, 5), (1, 5)]


def test_replicated_values_are_the_same_object_in_every_microbatch():
    x, table, things = columns(4), torch.ones(3), [torch.ones(7)]
    seen = seen_by(x, table, things, args_spec=(1, REPLICATE, REPLICATE))
    for args, _ in seen:
        assert args[1] is table
        assert args[2] is things


def test_torchs_specs_are_accepted():
    from torch.distributed.pipelining.microbatch import TensorChunkSpec, _Replicate

    x, table = columns(4), torch.ones(3)
    seen = seen_by(x, table, args_spec=(TensorChunkSpec(1), _Replicate), k=x, kwargs_spec={"k": 1})
    assert [args[0].shape for args, _ in seen] == [(2, 2), (2, 2)]
    assert seen[0][0][1] is table
    again = seen_by(x, table, args_spec=(TensorChunkSpec(1), _Replicate()))
    assert again[1][0][1] is table


def test_a_tensor_under_two_specs_is_cut_in_both_ways():
    x = torch.arange(16.0).reshape(4, 4)
    (args, kwargs), _ = seen_by(x, k=x, args_spec=(0,), kwargs_spec={"k": 1})
    assert torch.equal(args[0], x[:2])
    assert torch.equal(kwargs["k"], x[:, :2])


def test_rows_are_counted_along_the_dimension_that_is_cut():
    """Three of five rows in the first of two microbatches: its loss counts 3/5."""
    x = columns(5).requires_grad_()

    def loss(output):
        return output.mean()

    model = nn.Linear(1, 1)
    with pipert.Pipeline(
        [lambda x: model(x.reshape(-1, 1))], num_microbatches=2, loss_fn=loss, args_spec=(1,)
    ) as pipe:
        result = pipe.step(x)
    assert torch.equal(result.loss, (result.losses * torch.tensor([3 / 5, 2 / 5])).sum())


# --- custom ---------------------------------------------------------------------------------------


def test_a_custom_cut_is_called_once_a_step_with_the_value_and_the_number():
    calls = []

    def cut(value, num_microbatches):
        calls.append((value, num_microbatches))
        return [f"{value} {i}" for i in range(num_microbatches)]

    def first(x, text):
        return x

    def second(x, text):
        texts.append(text)
        return x

    texts: list[str] = []
    with pipert.Pipeline(
        [first, second], num_microbatches=3, kwargs_spec={"text": CustomCut(cut)}
    ) as pipe:
        for _ in range(2):
            pipe(torch.ones(3), text="piece")
    assert calls == [("piece", 3)] * 2  # although two stages of the process take it
    assert texts == ["piece 0", "piece 1", "piece 2"] * 2


def test_pieces_of_a_custom_cut_may_have_any_sizes():
    x = torch.arange(6.0)
    (first, _), (second, _) = seen_by(x, args_spec=(CustomCut(lambda v, n: v.split([5, 1])),))
    assert (len(first[0]), len(second[0])) == (5, 1)


def test_without_rows_microbatches_count_alike():
    def stage(words):
        return parameter * len(words)

    parameter = nn.Parameter(torch.ones(()))
    with pipert.Pipeline(
        [stage],
        num_microbatches=2,
        loss_fn=lambda output: output,
        args_spec=(CustomCut(lambda text, n: text.split("|")),),
    ) as pipe:
        result = pipe.step("abc|a")
    assert result.losses.tolist() == [3, 1]
    assert result.loss.item() == 2


class Jagged:
    """Rows of different lengths, which no tensor_split could cut."""

    def __init__(self, rows):
        self.rows = rows

    def pipert_cut(self, num_microbatches):
        return [Jagged(self.rows[m::num_microbatches]) for m in range(num_microbatches)]


def test_an_object_that_knows_how_to_cut_itself_does():
    jagged = Jagged([[1], [2, 3], [4, 5, 6]])
    seen = seen_by(jagged, {"inside": [jagged]})
    for args, _ in seen:
        assert args[1]["inside"][0] is args[0]
    assert [args[0].rows for args, _ in seen] == [[[1], [4, 5, 6]], [[2, 3]]]
    assert seen_by(jagged, args_spec=(REPLICATE,))[0][0][0] is jagged


def test_a_block_mask_is_cut_by_rows():
    lengths = torch.tensor([64, 128, 100, 32, 5])

    def mask_mod(b, h, q, kv):
        return (q >= kv) & (q < lengths[b])

    mask = create_block_mask(mask_mod, 5, 1, 128, 128, device="cpu", BLOCK_SIZE=32)
    x = torch.zeros(5, 1)
    pieces = [kwargs["mask"] for _, kwargs in seen_by(x, mask=mask)]
    assert all(isinstance(piece, BlockMask) for piece in pieces)
    assert [piece.kv_num_blocks.shape[0] for piece in pieces] == [3, 2]
    dense = torch.cat([piece.to_dense() for piece in pieces])
    assert torch.equal(dense, mask.to_dense())
    # Its function counts rows from the microbatch's first.
    zero = torch.zeros((), dtype=torch.long)
    row, column = torch.tensor(40), torch.tensor(3)
    for first, piece in zip((0, 3), pieces, strict=True):
        for b in range(piece.kv_num_blocks.shape[0]):
            expected = mask_mod(torch.tensor(first + b), zero, row, column)
            assert piece.mask_mod(torch.tensor(b), zero, row, column) == expected


def test_a_block_mask_for_all_rows_goes_to_every_microbatch():
    mask = create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 128, 128, device="cpu")
    assert all(kwargs["mask"] is mask for _, kwargs in seen_by(torch.zeros(4), mask=mask))


# --- containers -----------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclasses.dataclass(frozen=True)
class Fields:
    x: Tensor
    inner: Any
    name: str = "n"


@dataclasses.dataclass
class Settings:
    depth: int


class Own(collections.OrderedDict):
    pass


def test_containers_of_every_kind_are_cut_and_keep_their_kind():
    x = torch.arange(4.0)
    whole = {
        "tuple": (x, [x]),
        "pair": Pair(x, {"deep": x}),
        "fields": Fields(x, (x, "word")),
        "own": Own(a=x, b=1),
        "user": collections.UserDict(a=x),
    }
    for m, (args, _) in enumerate(seen_by(whole)):
        piece = x.tensor_split(2)[m]
        got = args[0]
        assert torch.equal(got["tuple"][1][0], piece)
        assert type(got["pair"]) is Pair
        assert torch.equal(got["pair"].second["deep"], piece)
        assert type(got["fields"]) is Fields
        assert torch.equal(got["fields"].inner[0], piece)
        assert got["fields"].name == "n"
        assert type(got["own"]) is Own
        assert list(got["own"]) == ["a", "b"]
        assert type(got["user"]) is collections.UserDict
        assert torch.equal(got["user"]["a"], piece)
    assert torch.equal(whole["fields"].x, x)  # the caller's is as it was


def test_objects_without_tensors_go_whole():
    settings_, pair = Settings(3), Pair("a", 1)
    for args, _ in seen_by(torch.ones(2), settings_, pair, object):
        assert args[1] is settings_
        assert args[2] is pair
        assert args[3] is object


def test_specs_reach_into_containers_by_position_key_and_field():
    x = torch.arange(16.0).reshape(4, 4)
    seen = seen_by(
        (x, x),
        Fields(x, {"k": x, "rest": x}),
        Pair(x, x),
        args_spec=(
            (Cut(1), REPLICATE),
            {"inner": {"k": 1}},
            {"second": REPLICATE},
        ),
    )
    args, _ = seen[0]
    assert torch.equal(args[0][0], x[:, :2])
    assert args[0][1] is x
    assert torch.equal(args[1].x, x[:2])
    assert torch.equal(args[1].inner["k"], x[:, :2])
    assert torch.equal(args[1].inner["rest"], x[:2])
    assert torch.equal(args[2].first, x[:2])
    assert args[2].second is x


def test_a_spec_over_a_container_holds_for_everything_in_it():
    x = torch.arange(16.0).reshape(4, 4)
    args, _ = seen_by([x, {"k": x, "n": torch.tensor(3.0), "w": "word"}], args_spec=(1,))[0]
    assert torch.equal(args[0][1]["k"], x[:, :2])
    assert args[0][1]["n"].item() == 3
    assert args[0][1]["w"] == "word"


def test_optional_arguments_may_be_left_out():
    x = columns(4)
    spec = {"args_spec": (1, (1, 1), 0), "kwargs_spec": {"a": 1, "b": (0, 1)}}
    assert seen_by(x, **spec)[0][0][0].shape == (2, 2)
    assert seen_by(x, None, a=x, b=None, **spec)[0][1]["a"].shape == (2, 2)


# --- nested structures and specs at random --------------------------------------------------------

TREE_LEAVES = st.one_of(
    st.sampled_from(["word", 7, None, 1.5]),
    st.integers(0, 2).map(lambda dim: ("tensor", dim)),
)


def trees(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        ),
        max_leaves=8,
    )


def is_marker(tree):
    return type(tree) is tuple and len(tree) == 2 and tree[0] == "tensor"


def build(tree, rows, numbers):
    """The value with a tensor of three dimensions for each mark: `rows` along the marked one."""
    if is_marker(tree):
        shape = [2, 2, 2]
        shape[tree[1]] = rows
        return torch.full(shape, float(next(numbers))) + torch.arange(rows).reshape(
            [rows if d == tree[1] else 1 for d in range(3)]
        )
    return rebuild(tree, lambda part: build(part, rows, numbers))


def rebuild(tree, of):
    if isinstance(tree, Pair):
        return Pair(*map(of, tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map(of, tree))
    if isinstance(tree, dict):
        return {key: of(value) for key, value in tree.items()}
    return tree


def spec_of(tree):
    if is_marker(tree):
        return Cut(tree[1])
    if isinstance(tree, list | tuple | dict):
        return rebuild(tree, spec_of)
    return None


def expected_piece(tree, value, m, microbatches):
    if is_marker(tree):
        return value.tensor_split(microbatches, tree[1])[m]
    if isinstance(tree, dict):
        return {k: expected_piece(tree[k], value[k], m, microbatches) for k in tree}
    if isinstance(tree, list | tuple):
        parts = [expected_piece(*pair, m, microbatches) for pair in zip(tree, value, strict=True)]
        return Pair(*parts) if isinstance(tree, Pair) else type(tree)(parts)
    return value


def same(got, expected):
    if isinstance(expected, Tensor):
        return torch.equal(got, expected)
    if type(got) is not type(expected):
        return False
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(same(got[k], expected[k]) for k in got)
    if isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(map(same, got, expected))
    return got == expected


@given(tree=trees(TREE_LEAVES), rows=st.integers(3, 7), kind=st.sampled_from(["module", "native"]))
@settings(max_examples=60, deadline=None)
def test_any_nested_value_is_cut_as_its_spec_says(tree, rows, kind):
    value = build(tree, rows, iter(range(100)))
    x = torch.zeros(rows)
    seen = []

    def stage(x, value):
        seen.append(value)
        return x

    with pipert.Pipeline(
        [stage], num_microbatches=3, args_spec=(0, spec_of(tree)), stage_kind=kind
    ) as pipe:
        outputs = pipe(x, value)
    assert torch.equal(outputs, x)
    for m in range(3):
        assert same(seen[m], expected_piece(tree, value, m, 3))


@given(tree=trees(TREE_LEAVES), rows=st.integers(3, 7))
@settings(max_examples=60, deadline=None)
def test_outputs_are_merged_back_to_what_was_cut(tree, rows):
    value = build(tree, rows, iter(range(100)))
    spec = rebuild_output_spec(tree)
    with pipert.Pipeline(
        [lambda x, value: (x, value)],
        num_microbatches=3,
        args_spec=(0, spec_of(tree)),
        output_spec=(0, spec),
    ) as pipe:
        x, merged = pipe(torch.arange(float(rows)), value)
    assert torch.equal(x, torch.arange(float(rows)))
    assert same(merged, value)


def rebuild_output_spec(tree):
    """As spec_of, with other values taken once."""
    if is_marker(tree):
        return Cut(tree[1])
    if isinstance(tree, list | tuple | dict):
        return rebuild(tree, rebuild_output_spec)
    return REPLICATE


# --- outputs --------------------------------------------------------------------------------------


def test_outputs_are_merged_along_the_dimension_of_their_spec():
    x = columns(5)
    with pipert.Pipeline(
        [lambda x: {"y": x, "sum": x.sum(), "shape": tuple(x.shape)}],
        num_microbatches=2,
        args_spec=(1,),
        output_spec={"y": 1, "shape": CustomCut(merge=lambda shapes: shapes[::-1])},
    ) as pipe:
        outputs = pipe(x)
    assert torch.equal(outputs["y"], x)
    assert outputs["sum"].shape == (2,)
    assert outputs["shape"] == [(2, 2), (2, 3)]


def test_a_replicated_output_is_the_first_microbatchs():
    x = torch.arange(4.0)
    with pipert.Pipeline(
        [lambda x: (x, x + 1)], num_microbatches=2, output_spec=(0, REPLICATE)
    ) as pipe:
        assert torch.equal(pipe(x)[1], x[:2] + 1)


def test_outputs_of_different_structures_come_as_a_list_without_a_spec():
    def stage(x):
        return {"x": x} if x[0] else (x,)

    with pipert.Pipeline([stage], num_microbatches=2) as pipe:
        outputs = pipe(torch.tensor([0.0, 1.0]))
    assert [type(output) for output in outputs] == [tuple, dict]


# --- bad input ------------------------------------------------------------------------------------

X = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("specs", "error", "message"),
    [
        ({"args_spec": ("rows",)}, TypeError, r"args_spec\[0\] must be a pipert.Cut, .* got str"),
        ({"args_spec": (True,)}, TypeError, r"args_spec\[0\] must be .* got bool"),
        ({"args_spec": {"x": 0}}, TypeError, "args_spec must be one spec .* by position, got dict"),
        ({"kwargs_spec": (0,)}, TypeError, "kwargs_spec must be one spec .* by name, got tuple"),
        (
            {"kwargs_spec": {"mask": [0, object()]}},
            TypeError,
            r"kwargs_spec\['mask'\]\[1\] must be .* got object",
        ),
        (
            {"kwargs_spec": {"mask": CustomCut(merge=list)}},
            ValueError,
            r"kwargs_spec\['mask'\]: expected CustomCut\(cut=...\), got none",
        ),
        (
            {"output_spec": CustomCut(cut=list)},
            ValueError,
            r"output_spec: expected CustomCut\(merge=...\)",
        ),
        (
            {"kwargs_spec": {"masks": 0}},
            ValueError,
            "kwargs_spec has a spec for 'masks', the arguments by name are: k, x",
        ),
    ],
)
def test_specs_that_are_none_are_refused(specs, error, message):
    with pytest.raises(error, match=message):
        pipert.Pipeline([lambda x, k=None: x], num_microbatches=2, **specs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cut("x"), "dim must be a dimension's number, got 'x'"),
        (lambda: Cut(False), "dim must be a dimension's number, got False"),
        (lambda: CustomCut(cut=3), "cut must be a function, got int"),
        (lambda: CustomCut(), r"expected CustomCut\(cut=...\) or CustomCut\(merge=...\)"),
    ],
)
def test_a_spec_is_checked_when_it_is_made(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("args", "spec", "message"),
    [
        ((X, X), (0,), r"args_spec has specs for at most 1 elements, args has 2"),
        ((X,), (2,), r"args_spec\[0\] cuts dimension 2, args\[0\] has 2 dimensions"),
        ((X,), (-3,), r"args_spec\[0\] cuts dimension -3, args\[0\] has 2 dimensions"),
        (([X],), ((0, 0),), r"args_spec\[0\] has specs for 2 elements, args\[0\] has 1"),
        ((X,), ((0, 0),), r"args_spec\[0\] has specs for 2 elements, args\[0\] is a Tensor"),
        ((X,), ({"a": 0},), r"args_spec\[0\] has specs for named elements, args\[0\] is a Tensor"),
        (({"a": X},), ((0,),), r"args_spec\[0\] has specs for 1 elements, args\[0\] has them by n"),
        (((X,),), ({"a": 0},), r"args_spec\[0\] has specs by name, args\[0\] has elements without"),
        (
            ({"a": X},),
            ({"b": 0},),
            r"args_spec\[0\] has a spec for 'b', args\[0\] has 'a'",
        ),
        ((X, X), (0, 1), r"args\[1\] has 6 rows in dimension 1, expected 4"),
        ((X, {"a": [X]}), (1, 0), r"args\[1\]\['a'\]\[0\] has 4 rows, expected 6"),
        ((X, Pair(X[:3], 0)), (0, 0), r"args\[1\].first has 3 rows, expected 4"),
        ((X, Fields(X[:3], 0)), None, r"args\[1\].x has 3 rows, expected 4"),
        ((X, object()), (0, 0), r"args_spec\[1\] asks to cut args\[1\], which is a object"),
        (
            (X, "a"),
            (0, CustomCut(lambda v, n: [v])),
            r"the cut of args\[1\] must give 2 pieces \(num_microbatches\), got 1",
        ),
        (
            (X, "a"),
            (0, CustomCut(lambda v, n: v)),
            r"the cut of args\[1\] must give a list of 2 pieces, got str",
        ),
    ],
)
def test_values_that_do_not_fit_their_specs_are_refused(args, spec, message):
    with (
        pipert.Pipeline([lambda *args: args[0]], num_microbatches=2, args_spec=spec) as pipe,
        pytest.raises((TypeError, ValueError), match=message),
    ):
        pipe(*args)


def test_a_block_mask_for_another_number_of_rows_is_refused():
    mask = create_block_mask(lambda b, h, q, kv: q >= kv, 3, 1, 128, 128, device="cpu")
    with pytest.raises(ValueError, match=r"kwargs\['mask'\] is a BlockMask for 3 rows, expected 1"):
        seen_by(torch.ones(4), mask=mask)


def test_an_error_of_a_custom_cut_is_the_callers():
    def cut(value, num_microbatches):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        seen_by(X, args_spec=(CustomCut(cut),))


@pytest.mark.parametrize(
    ("spec", "output", "message"),
    [
        ((0, 0), lambda x: x, "output_spec has specs for elements, the output is a tensor"),
        ((0, 0), lambda x: [x], "output_spec has specs for 2 elements, the output has 1"),
        ({"b": 0}, lambda x: {"a": x}, "output_spec has a spec for 'b', the output has 'a'"),
        ((0,), lambda x: {"a": x}, "output_spec has specs by position, the output is a dict"),
        (
            {"a": 0},
            lambda x: (x,),
            "output_spec has a spec for 'a', the output: its elements have no names",
        ),
        (1, lambda x: x.sum(1), "output_spec puts the output together along dimension 1, the micr"),
        (
            0,
            lambda x: (x,) if x[0, 0] else [x],
            "the output of microbatch 1 is a tuple, that of microbatch 0 a list",
        ),
        (
            0,
            lambda x: {str(int(x[0, 0])): x},
            "the output of microbatch 1 has '1', that of microbatch 0 has '0'",
        ),
        (
            0,
            lambda x: x[:, : 2 + int(x[0, 0])],
            r"output_spec puts the output together along dimension 0, .* shapes \[2, 2\], \[2, 3\]",
        ),
    ],
)
def test_outputs_that_do_not_fit_their_spec_are_refused(spec, output, message):
    x = torch.zeros(4, 6)
    x[2:, 0] = 1
    with (
        pipert.Pipeline([output], num_microbatches=2, output_spec=spec) as pipe,
        pytest.raises(ValueError, match=message),
    ):
        pipe(x)


# --- with arguments by name -----------------------------------------------------------------------


def test_specs_of_positional_arguments_hold_for_their_names():
    table = torch.rand(5)
    ids, mask = torch.randint(0, 7, (5, 4)), torch.rand(5, 4)
    stages = wired_stages()
    with pipert.Pipeline(stages, num_microbatches=2) as pipe:
        expected = pipe(ids.T.contiguous(), mask.T.contiguous(), table.expand(4, 5))
    for specs in (
        {"args_spec": (1, 1, REPLICATE)},
        {"kwargs_spec": {"ids": 1, "mask": 1, "positions": REPLICATE}},
        {"args_spec": 1, "kwargs_spec": {"positions": REPLICATE}},
        {"args_spec": (1,), "kwargs_spec": {"mask": 1, "positions": REPLICATE}},
    ):
        with pipert.Pipeline(_turned(stages), num_microbatches=2, **specs) as pipe:
            outputs = pipe(ids, mask, positions=table)
        assert torch.equal(outputs, expected)


def _turned(stages):
    """Stages that take ids and mask with rows in dimension 1."""
    return pipert.Stages(
        [_Turned(stage) for stage in stages],
        specs=stages.specs,
        values=stages.values,
        arguments=stages.arguments,
    )


class _Turned(nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def forward(self, *inputs, **arguments):
        turned = {k: v.T if k in ("ids", "mask") else v for k, v in arguments.items()}
        return self.stage(*inputs, **turned)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"args_spec": (0,) * 7}, "args_spec has specs for 7 arguments, the model takes 6"),
        ({"kwargs_spec": {"masks": 0}}, "kwargs_spec has a spec for 'masks', .* are: ids, mask"),
        (
            {"args_spec": (0, 0), "kwargs_spec": {"mask": 1}},
            r"args_spec\[1\] and kwargs_spec\['mask'\] are for the same argument",
        ),
        ({"kwargs_spec": 1}, "kwargs_spec must be a dict by name where stages take arguments by"),
    ],
)
def test_specs_that_do_not_fit_the_models_arguments_are_refused(specs, message):
    with pytest.raises(ValueError, match=message):
        pipert.Pipeline(wired_stages(), num_microbatches=2, **specs)
