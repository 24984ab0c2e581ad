"""An export that is broken off, or whose forward does what no export can hold."""

import pytest
import torch
from native_pair import run_both
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("asks", [False, True], ids=["plain", "asks for its microbatch"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_an_export_ends_the_step(error, asks):
    break_off = []  # whose elements are nothing that a graph depends on

    def stage(x):
        if asks:
            pipert.current_microbatch()
        if break_off:
            raise error
        return x * 2

    x = torch.ones(4, 3)
    with pipert.Pipeline([stage], num_microbatches=2, stage_kind="native") as pipe:
        pipe(x)
        break_off.append(True)
        with pytest.raises(error):
            pipe(x)
        break_off.clear()
        for _ in range(2):
            assert torch.equal(pipe(x), x * 2)
        reason = "module: it asks which microbatch it is"
        assert pipe.stage_kinds == {0: reason if asks else "native"}


def test_a_forward_that_asks_for_its_microbatch_and_fails_for_the_answer_is_told_so():
    def stage(x):
        return x * (pipert.current_microbatch().index + 1)

    with pipert.Pipeline([stage], num_microbatches=2, stage_kind="native") as pipe:
        for _ in range(3):
            assert pipe(torch.ones(2, 1)).tolist() == [[1.0], [2.0]]
        assert pipe.stage_kinds == {0: "module: it asks which microbatch it is"}


def test_a_stage_that_runs_another_pipeline_runs_its_module():
    inner = pipert.Pipeline([nn.Linear(3, 3).requires_grad_(False)], num_microbatches=1)

    def steps(pipe, _):
        for _ in range(3):
            yield pipe(torch.ones(4, 3))

    with inner:
        run_both(lambda: [lambda x: x + inner(x)], steps, "it runs another pipeline")


def test_a_loss_that_runs_another_pipeline_runs_in_python():
    def loss_fn(output):
        return (output + inner(output.detach())).mean()

    def steps(pipe, _):
        for _ in range(3):
            yield pipe.step(torch.ones(4, 3)).losses

    inner = pipert.Pipeline([nn.Linear(3, 3)], num_microbatches=1, stage_kind="native")

    def make():
        torch.manual_seed(0)
        return [nn.Linear(3, 3)]

    with inner:
        assert "it runs another pipeline" in run_both(make, steps, {0: "native"}, loss_fn=loss_fn)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_an_example_that_cannot_be_made_runs_the_module():
    def stage(x):
        return x.dequantize() * 2

    x = torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.quint8)
    with pipert.Pipeline([stage], num_microbatches=1, stage_kind="native") as pipe:
        for _ in range(3):
            result = pipe.evaluate(microbatches=[(x,)], return_outputs=True)
            assert torch.equal(result.outputs[0], stage(x))
        assert pipe.stage_kinds[0].startswith("module: ")
