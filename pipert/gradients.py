"""Gradient clipping over a model whose stages live in several processes."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from pipert.local.local_stages import LocalStages
from pipert.processes.distributed import Peers

GradientOf = Callable[[nn.Parameter], Tensor | None]


def own_gradient(parameter: nn.Parameter) -> Tensor | None:
    """Where torch puts it."""
    return parameter.grad


def gradient_norms(
    stages: LocalStages, peers: Peers | None, gradient_of: GradientOf
) -> list[float]:
    """The 2-norm of each gradient of the whole model, in order. A collective call in a group.

    Parameters without a gradient are left out; those that several processes have count once.
    """
    foreign = stages.ties.foreign()
    norms = {
        index: _norms(gradient_of(p) for _, p in named if p not in foreign)
        for index, named in stages.named_parameters()
    }
    if peers is not None:
        told = peers.exchange("clip gradients", list(norms.items()))
        norms = {index: own for part in told for index, own in part}
    return [norm for index in sorted(norms) for norm in norms[index]]


def _norms(gradients: Iterable[Tensor | None]) -> list[float]:
    """Of a DTensor the norm of the whole tensor: a collective call over its mesh."""
    found = [gradient for gradient in gradients if gradient is not None]
    plain = [gradient for gradient in found if not hasattr(gradient, "full_tensor")]
    norms = iter(torch._foreach_norm(plain) if plain else ())
    return [
        float(torch.linalg.vector_norm(gradient).full_tensor())
        if hasattr(gradient, "full_tensor")
        else float(next(norms))
        for gradient in found
    ]


def clip_gradients(
    gradients: Iterable[Tensor | None], norms: Sequence[float], max_norm: float
) -> Tensor:
    """Scales gradients so that the norm of all of the model's is at most `max_norm`.

    The norm is that of all gradients' norms in the order of the stages, so its bits don't depend
    on where the model is cut, nor on which process has which stage.

    Args:
        gradients: of this process's parameters, each once.
        norms: of all gradients of the model.
        max_norm: the largest norm allowed.

    Returns:
        The norm before, a float32 scalar on the CPU.
    """
    total: Tensor = torch.linalg.vector_norm(torch.tensor(norms))
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        if gradient is not None:
            gradient.mul_(scale.to(gradient.device))
    return total
