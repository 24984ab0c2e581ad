"""Each rank of a group takes its part of a batch: by name, cut by specs, weighted by counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from wired import PlainLoop, ids_and_mask, wired_stages

import pipert

# --- arguments by name ----------------------------------------------------------------------------


def square(output: Tensor) -> Tensor:
    return output.square().mean()


def _halves(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.tensor_split(2) for tensor in tensors), strict=True))


@pytest.mark.processes(2)
@pytest.mark.parametrize(("schedule", "middles"), [("1f1b", 0), ("interleaved_1f1b", 2)])
@pytest.mark.parametrize("given", ["everything", "its own"])
def test_a_rank_needs_what_its_stages_take_alone(schedule: str, middles: int, given: str) -> None:
    group = pipert.init()
    stages = wired_stages(middles)
    loop = PlainLoop(stages)
    ids, mask = ids_and_mask(5)
    arguments = {"ids": ids, "mask": mask}
    with pipert.Pipeline(
        stages, schedule=schedule, num_microbatches=2, loss_fn=square, group=group
    ) as pipe:
        if given == "its own":
            specs = [stages.specs[index] for index in pipe.stages]
            taken = {name for spec in specs for name in spec.arguments}
            arguments = {name: v for name, v in arguments.items() if name in taken}
        result = pipe.step(**arguments)
        expected = loop.step(
            [(piece, {}) for piece in _halves(ids, mask)],
            lambda output, _: square(output),
            [0.6, 0.4],
        )
        assert result.losses is None or torch.equal(result.losses, expected)
        loop.assert_same_gradients(pipe)


@pytest.mark.processes(2)
def test_a_missing_argument_is_said_on_every_rank() -> None:
    ids, mask = ids_and_mask(4)
    group = pipert.init()
    with pipert.Pipeline(
        wired_stages(0), num_microbatches=2, loss_fn=square, group=group, timeout_s=20
    ) as pipe:
        is_first = group.rank() == 0
        expected = pipert.PipelineError if is_first else ValueError
        with pytest.raises(expected, match="stage 1 needs the argument 'mask'"):
            pipe.step(ids)
        pipe.step(ids, mask)


@pytest.mark.processes(2)
def test_microbatches_have_names_on_every_rank() -> None:
    group = pipert.init()
    stages = wired_stages(0)
    loop = PlainLoop(stages)
    pieces = [ids_and_mask(3, seed=1), ids_and_mask(1, length=2, seed=2)]
    with pipert.Pipeline(stages, num_microbatches=2, loss_fn=square, group=group) as pipe:
        pipe.step(microbatches=[pipert.Microbatch((ids,), {"mask": mask}) for ids, mask in pieces])
        loop.step([(piece, {}) for piece in pieces], lambda output, _: square(output))
        loop.assert_same_gradients(pipe)
