"""PipelineStage: the module of one stage, and where it belongs. The engine's part is pipert's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipert.compat.torch_pipelining.dtensors import DTensorEdges, is_dtensor
from pipert.processes.group import as_group
from pipert.stages import Stages

# What torch's runtime calls on its stages, and pipert's has no use for.
_ENGINE = (
    "sends, receives, and the forward and backward of a microbatch are instructions of pipert's "
    "engine: run a schedule with step() or eval()"
)
_MEANINGLESS = {
    **dict.fromkeys(
        (
            "forward_one_chunk",
            "backward_one_chunk",
            "backward_weight_one_chunk",
            "forward_maybe_with_nosync",
            "backward_maybe_with_nosync",
            "get_fwd_recv_ops",
            "get_bwd_recv_ops",
            "get_fwd_send_ops",
            "get_bwd_send_ops",
            "set_local_fwd_input",
            "get_local_bwd_output",
            "set_local_bwd_input",
        ),
        _ENGINE,
    ),
    "perform_reduce_grad": "gradients are scaled as they are made",
    **dict.fromkeys(
        ("fwd_cache", "bwd_cache", "backward_state", "dw_runner"),
        "what is kept of a microbatch belongs to pipert's engine",
    ),
}


@dataclass
class PipeInfo:
    """What the stages of a Pipe are to each other.

    Attributes:
        graph: of the whole: one call of a submodule for each stage.
        num_stages: how many there are.
        has_loss_and_backward: always False: losses belong to schedules.
        stages: the same in pipert's words, without the modules.
    """

    graph: torch.fx.Graph
    num_stages: int
    has_loss_and_backward: bool
    stages: Stages | None = None


class _PipelineStageBase:
    """What both ways to make a stage have in common.

    Args:
        submodule: the stage's module, on `device` or not yet: the first step moves it there.
        stage_index: its number in the pipeline, from 0.
        num_stages: how many stages the pipeline has.
        device: of this rank; all stages of a rank have the same one.
        group: whose ranks have the stages; None: all processes, or, without torch.distributed, this
            process alone.
        dw_builder: `dw_builder()`, behind each backward, returns a function for the weight half: it
            computes gradients of weights that the module's backward has left out.

    Attributes:
        submod, stage_index, num_stages, device, group, dw_builder: as given.
        group_rank: this process's rank in the group; 0 without one.
        group_size: of the group; 1 without one.
        has_backward: whether the last pass had a backward.
        output_chunks: of the last stage: its outputs of the last pass, by microbatch.
        args_recv_info, grad_recv_info: nothing: shapes travel with each message.
        stage_index_to_group_rank: which rank has which stage, as its schedule says.
    """

    def __init__(
        self,
        submodule: nn.Module,
        stage_index: int,
        num_stages: int,
        device: torch.device,
        group: Any = None,
        dw_builder: "Callable[[], Callable[..., None]] | None" = None,
    ) -> None:
        if not 0 <= stage_index < num_stages:
            raise ValueError(f"Stage index {stage_index} is out of range of {num_stages}")
        if group is not None:
            group = as_group(group)
        elif dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        self.submod = submodule
        self.stage_index = stage_index
        self.num_stages = num_stages
        self.device = device
        self.group = group
        self.group_rank = 0 if group is None else group.rank()
        self.group_size = 1 if group is None else group.size()
        if self.group_size > num_stages:
            raise RuntimeError(
                f"Pipeline group size {self.group_size} cannot be larger than number of stages "
                f"{num_stages}"
            )
        self.has_backward = False
        self.dw_builder = dw_builder
        self.output_chunks: list[Any] = []
        self.args_recv_info: dict[int, Any] = {}
        self.grad_recv_info: dict[int, Any] = {}
        self.stage_index_to_group_rank = {s: s % self.group_size for s in range(num_stages)}
        self._stages: Stages | None = None
        self._edges: DTensorEdges | None = None

    @property
    def is_first(self) -> bool:
        """Whether it is the first stage."""
        return self.stage_index == 0

    @property
    def is_last(self) -> bool:
        """Whether it is the last stage."""
        return self.stage_index == self.num_stages - 1

    def clear_runtime_states(self) -> None:
        """Forgets the outputs of the last pass."""
        self.output_chunks.clear()

    def scale_grads(self, grad_scale_factor: int) -> None:
        """Divides the gradients of its parameters, in place. Schedules have done so already."""
        if grad_scale_factor != 1:
            for parameter in self.submod.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(grad_scale_factor)

    def __getattr__(self, name: str) -> Any:
        reason = _MEANINGLESS.get(name)
        if reason is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(f"a stage of pipert has no {name}: {reason}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.stage_index} of {self.num_stages} on {self.device}>"


class PipelineStage(_PipelineStageBase):
    """A stage whose module gets what the stage before it returned.

    Args:
        submodule, stage_index, num_stages, device, group, dw_builder: see _PipelineStageBase.
        input_args, output_args, output_grads, input_grads: example tensors. Not needed: shapes
            travel with each message, and may change from one microbatch to the next.
        get_mesh: `get_mesh(mesh_dim_names, mesh_layout)` gives the mesh of DTensors that the stage
            before hands over. Where stages exchange DTensors all must have it, or DTensors
            among their examples, whose meshes are then known.
    """

    def __init__(
        self,
        submodule: nn.Module,
        stage_index: int,
        num_stages: int,
        device: torch.device,
        input_args: "torch.Tensor | tuple[torch.Tensor, ...] | None" = None,
        output_args: "torch.Tensor | tuple[torch.Tensor, ...] | None" = None,
        output_grads: "torch.Tensor | tuple[torch.Tensor | None, ...] | None" = None,
        input_grads: "torch.Tensor | tuple[torch.Tensor | None, ...] | None" = None,
        group: Any = None,
        dw_builder: "Callable[[], Callable[..., None]] | None" = None,
        get_mesh: "Callable[..., Any] | None" = None,
    ) -> None:
        super().__init__(submodule, stage_index, num_stages, device, group, dw_builder)
        given = {
            "input_args": input_args,
            "output_args": output_args,
            "output_grads": output_grads,
            "input_grads": input_grads,
        }
        examples = [e for name, example in given.items() for e in _examples(name, example)]
        if get_mesh is not None or any(map(is_dtensor, examples)):
            self._edges = DTensorEdges(examples, get_mesh, self.is_first, self.is_last)


class _PipelineStage(_PipelineStageBase):
    """A stage of a Pipe: it gets the values and arguments that the Pipe says."""

    def __init__(
        self,
        stage_module: nn.Module,
        stage_index: int,
        pipe_info: PipeInfo,
        device: torch.device,
        group: Any = None,
    ) -> None:
        if not isinstance(pipe_info, PipeInfo):
            raise TypeError(
                f"pipe_info must be what Pipe.info() of {__package__} returns, got "
                f"{type(pipe_info).__module__}.{type(pipe_info).__name__}"
            )
        super().__init__(stage_module, stage_index, pipe_info.num_stages, device, group)
        self.pipe_info = pipe_info
        self.name = f"submod_pp_{stage_index}"
        self._stages = pipe_info.stages
        if not any(parameter.is_meta for parameter in stage_module.parameters()):
            stage_module.to(device)


def build_stage(
    stage_module: nn.Module,
    stage_index: int,
    pipe_info: PipeInfo,
    device: torch.device,
    group: Any = None,
) -> _PipelineStage:
    """Makes a stage of a module that came from a Pipe and may have been wrapped since.

    Args:
        stage_module: what `Pipe.get_stage_module(stage_index)` gave, or a wrapper of it.
        stage_index: its number.
        pipe_info: what `Pipe.info()` gave.
        device: to which the module is moved, unless it is on "meta".
        group: as of PipelineStage.
    """
    return _PipelineStage(stage_module, stage_index, pipe_info, device, group)


def _examples(name: str, given: Any) -> list[torch.Tensor]:
    values = given if isinstance(given, tuple | list) else (given,)
    for value in values:
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{name} must be a tensor or a tuple of tensors, got {type(value).__name__}"
            )
    return [value for value in values if value is not None]
