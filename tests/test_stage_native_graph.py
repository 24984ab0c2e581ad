"""The program that C++ runs for a native stage, and the conditions under which it may."""

import math
import operator
import random
import weakref

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from pipert import _C, native
from pipert.native.export import Exported

pytestmark = pytest.mark.timeout(60)


def graph(instructions, outputs, num_registers, num_inputs=1, num_parameters=0):
    return _C.NativeGraph(
        num_inputs=num_inputs,
        num_parameters=num_parameters,
        num_registers=num_registers,
        instructions=instructions,
        outputs=outputs,
    )


def add(left, right, output):
    """A call of aten::add.Tensor."""
    return ("call", "aten::add", "Tensor", [left, right, ("constant", 1)], [output], "")


def full(value, output):
    """A call that makes a float64 tensor of one number."""
    arguments = [("constant", []), value, ("constant", torch.float64)]
    return ("call", "aten::full", "", [*arguments, *[("constant", None)] * 3], [output], "")


def export(call, *args, **kwargs):
    """An Exported with its parameters set."""
    exported = Exported(*native.export(call, args, kwargs))
    for index, (owner, name) in enumerate(exported.sources):
        exported.graph.set_parameter(index, owner[name])
    return exported


def test_registers_hold_inputs_parameters_and_results():
    program = graph(
        [
            add(("register", 0), ("register", 1), 2),
            add(("register", 2), ("register", 2), 3),
        ],
        [("register", 3), ("register", 0), ("register", 3)],
        num_registers=4,
        num_parameters=1,
    )
    program.set_parameter(0, torch.tensor([10.0]))
    x = torch.tensor([1.0])
    for _ in range(2):
        first, second, third = program.run([x])
        assert first.item() == third.item() == 22
        assert second is x


@pytest.mark.parametrize("read_again", [False, True])
def test_a_tensor_dies_where_it_is_read_for_the_last_time(read_again):
    inputs = [torch.ones(3)]
    alive = weakref.ref(inputs[0])
    seen = []

    @torch.library.custom_op(f"pipert_test::looks_{read_again}", mutates_args=())
    def looks(x: torch.Tensor) -> torch.Tensor:
        inputs.clear()  # now only the graph may have it
        seen.append(alive() is not None)
        return x.clone()

    program = graph(
        [
            ("call", "aten::relu", "", [("register", 0)], [1], ""),
            ("call", f"pipert_test::looks_{read_again}", "", [("register", 1)], [2], ""),
            add(("register", 2), ("register", 0 if read_again else 2), 3),
        ],
        [("register", 3)],
        num_registers=4,
    )
    assert program.run(inputs)[0].tolist() == [2, 2, 2]
    assert seen == [read_again]
    assert alive() is None


def test_draws_behind_a_layer_instruction_are_the_layers():
    random = ("call", "aten::rand_like", "", [("register", 0), *[("constant", None)] * 5], [1], "")

    def drawn(*instructions, hooks=()):
        program = graph([*instructions, random], [("register", 1)], 2)
        scope = _C.KeyedScope(seed=1, owner=7, device="cpu", training=True, step=0, microbatch=0)
        scope.enter()
        try:
            for hook in hooks:
                hook(None)
            return program.run([torch.zeros(4)])[0].tolist()
        finally:
            scope.exit()

    assert drawn(("layer", 7, [3])) == drawn(hooks=[_C.LayerHook(7, [3])]) != drawn()
    assert drawn(*[("layer", 7, [3, 5])] * 2) == drawn(("layer", 7, [5]))  # used again
    assert drawn(("layer", 8, [3])) == drawn()  # somebody else's


def test_a_list_argument_mixes_registers_and_constants():
    tensors = ("list", [("register", 0), ("constant", torch.ones(1)), ("register", 0)])
    program = graph(
        [("call", "aten::cat", "", [tensors, ("constant", 0)], [1], "")], [("register", 1)], 2
    )
    assert program.run([torch.zeros(2)])[0].tolist() == [0, 0, 1, 0, 0]


OPERATIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "truediv": operator.truediv,
    "min": min,
    "max": max,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and_": operator.and_,
    "or_": operator.or_,
    "and": lambda a, b: bool(a and b),
    "or": lambda a, b: bool(a or b),
}


@example("floordiv", 1, 0.1)
@example("floordiv", 1, -0.1)
@example("mod", 0, -0.5)
@example("and_", 6, -3)
@example("and_", 1, True)
@given(
    st.sampled_from(sorted(OPERATIONS)),
    st.integers(0, 9),
    st.integers(-5, 5) | st.floats(-5, 5, width=32) | st.floats(-5, 5),
)
def test_arithmetic_on_sizes_is_pythons(name, size, number):
    if number == 0 and name in ("floordiv", "mod", "truediv"):
        return
    if isinstance(number, float) and name in ("and_", "or_"):
        return
    program = graph(
        [
            ("size", ("register", 0), 0, [1]),
            ("scalar", name, [("scalar", 1), ("constant", number)], [2]),
            full(("scalar", 2), 3),
        ],
        [("register", 3)],
        num_registers=4,
    )
    found, expected = program.run([torch.zeros(size)])[0].item(), OPERATIONS[name](size, number)
    assert (found, math.copysign(1, found)) == (expected, math.copysign(1, expected))


@pytest.mark.parametrize("name", ["and_", "or_"])
def test_bits_of_bools_are_a_bool(name):
    program = graph(
        [
            ("size", ("register", 0), 0, [1]),
            ("scalar", "gt", [("scalar", 1), ("constant", 3)], [2]),
            ("scalar", name, [("scalar", 2), ("constant", True)], [3]),
            ("call", "aten::mul", "Tensor", [("register", 0), ("scalar", 3)], [4], ""),
        ],
        [("register", 4)],
        num_registers=5,
    )
    for size in (2, 5):
        x = torch.ones(size, dtype=torch.bool)
        assert torch.equal(program.run([x])[0], x * OPERATIONS[name](size > 3, True))


def test_a_size_divided_by_zero_is_an_error():
    program = graph(
        [
            ("size", ("register", 0), 0, [1]),
            ("scalar", "floordiv", [("constant", 3), ("scalar", 1)], [2]),
            full(("scalar", 2), 3),
        ],
        [("register", 3)],
        num_registers=4,
    )
    with pytest.raises(ValueError, match="divided by zero"):
        program.run([torch.zeros(0)])
    assert program.run([torch.zeros(2)])[0].item() == 1  # and it can be run again


def test_modes_are_left_when_an_operator_fails():
    bad = ("constant", torch.ones(3))
    program = graph(
        [("grad_mode", False), add(("register", 0), bad, 1), ("leave",)], [("register", 1)], 2
    )
    with pytest.raises(RuntimeError, match=r"in aten::add\.Tensor"):
        program.run([torch.ones(2)])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("instructions", "outputs", "message"),
    [
        ([("call", "aten::nothing", "", [], [], "")], [], "has no operator aten::nothing"),
        ([("call", "aten::relu", "", [], [1], "")], [], "takes 1 arguments, got 0"),
        ([("jump", 1)], [], "expected an instruction, got jump"),
        ([add(("register", 0), ("register", 7), 1)], [], "no register 7 of 2"),
        ([add(("register", 0), ("register", 1), 1)], [], "read before it is written"),
        ([("size", ("register", 0), 0, [5])], [], "no register 5 of 2"),
        ([("scalar", "xor", [("constant", 1), ("constant", 2)], [1])], [], "got xor"),
        ([("scalar", "neg", [("constant", 1), ("constant", 2)], [1])], [], "takes 1 operands"),
        ([], [("place", 0)], "expected an argument's kind, got place"),
    ],
)
def test_a_broken_program_is_refused(instructions, outputs, message):
    with pytest.raises(ValueError, match=message):
        graph(instructions, outputs, num_registers=2)


def test_exported_graphs_equal_their_functions_on_other_sizes():
    def call(x, y):
        rows = x.shape[0]
        parts = x.split(2, dim=1)
        stacked = torch.stack([part.sum(1) for part in parts], dim=1)
        padded = nn.functional.pad(stacked, (rows % 3, 1))
        return padded.mean() * rows // 2, torch.arange(rows * 2) + y.shape[1], padded[..., :-1]

    generator = random.Random(0)
    exported = export(call, torch.rand(5, 6), torch.rand(2, 4))
    for _ in range(10):
        x, y = torch.rand(generator.randint(2, 9), 6), torch.rand(2, generator.randint(2, 9))
        for found, expected in zip(exported.graph.run([x, y]), call(x, y), strict=True):
            assert torch.equal(found, expected)


def test_a_function_of_no_tensors_is_exported():
    exported = export(lambda n: torch.full((2,), n), 3)
    assert exported.graph.run([])[0].tolist() == [3, 3]


def test_an_export_leaves_the_thread_as_it_was():
    state = random.getstate(), torch.get_rng_state()
    seeds = torch.manual_seed, torch.random.manual_seed

    def broken(x):
        torch.set_grad_enabled(False)
        torch.autocast("cpu").__enter__()
        torch.manual_seed(0)
        random.random()
        raise RuntimeError("never again")

    with pytest.raises(native.NativeError, match="never again"):
        native.export(broken, (torch.ones(2),), {})
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert not torch.compiler.is_exporting()
    assert (torch.manual_seed, torch.random.manual_seed) == seeds
