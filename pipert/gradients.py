"""Gradient clipping over a model whose stages live in several processes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def clip_grad_norm(
    stages: Sequence[Sequence[nn.Parameter]],
    indices: Sequence[int],
    num_stages: int,
    max_norm: float,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Clips the 2-norm of all gradients of the model.

    The norm is built stage by stage, so its bits don't depend on which process has which stage.

    Args:
        stages: the parameters of each stage of this process.
        indices: their stage indices.
        num_stages: of the whole model.
        max_norm: the largest norm allowed.
        group: the pipeline's group; None: all stages are here.

    Returns:
        The norm before clipping, a float32 scalar on the CPU.
    """
    if max_norm < 0:
        raise ValueError(f"max_norm must not be negative, got {max_norm}")
    norms = torch.zeros(num_stages)
    for index, parameters in zip(indices, stages, strict=True):
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms[index] = torch.nn.utils.get_total_norm(gradients).cpu()
    if group is not None:
        device = _device_of(group)
        shared = norms.to(device)
        dist.all_reduce(shared, group=group)  # each stage's norm and zeros: exact
        norms = shared.cpu()
    total: Tensor = torch.linalg.vector_norm(norms)
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for parameters in stages:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale.to(parameter.grad.device))
    return total


def _device_of(group: dist.ProcessGroup) -> torch.device:
    """One whose tensors the group can reduce."""
    types = {device.type for device in group._device_types}
    return torch.device("cpu" if "cpu" in types else next(iter(types)))
