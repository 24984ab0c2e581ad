"""Gradient clipping over a model whose stages live in several processes."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def gradient_norms(parameters: Iterable[nn.Parameter]) -> list[float]:
    """The 2-norm of each gradient, in order; parameters without one are left out."""
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
