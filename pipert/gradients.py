"""Gradient clipping over a model whose stages live in several processes."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pipert.distributed import Peers
from pipert.local_stages import LocalStages


def gradient_norms(stages: LocalStages, peers: Peers | None) -> list[float]:
    """The 2-norm of each gradient of the whole model, in order. A collective call in a group.

    Parameters without a gradient are left out.
    """
    norms = {index: _norms(p for _, p in named) for index, named in stages.named_parameters()}
    if peers is not None:
        told = peers.exchange("clip gradients", list(norms.items()))
        norms = {index: own for part in told for index, own in part}
    return [norm for index in sorted(norms) for norm in norms[index]]


def _norms(parameters: Iterable[nn.Parameter]) -> list[float]:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return [float(norm) for norm in torch._foreach_norm(gradients)] if gradients else []


def clip_gradients(
    parameters: Iterable[nn.Parameter], norms: Sequence[float], max_norm: float
) -> Tensor:
    """Scales gradients so that the norm of all of the model's is at most `max_norm`.

    The norm is that of all gradients' norms in the order of the stages, so its bits don't depend
    on where the model is cut, nor on which process has which stage.

    Args:
        parameters: of this process, each once.
        norms: of all gradients of the model.
        max_norm: the largest norm allowed.

    Returns:
        The norm before, a float32 scalar on the CPU.
    """
    total: Tensor = torch.linalg.vector_norm(torch.tensor(norms))
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(scale.to(parameter.grad.device))
    return total
