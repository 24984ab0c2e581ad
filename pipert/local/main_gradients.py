"""MainGradients: the float32 sums that a step's gradients go to, on the parameters themselves."""

import torch
from torch import Tensor, nn

from pipert.local.local_stages import LocalStages

Entry = tuple[nn.Parameter, Tensor, bool]


class MainGradients:
    """`parameter.main_grad` of each parameter of this process that is trained.

    Made where it isn't there yet; one that somebody else has put there (a view of a large buffer,
    say) is used. So are parameters that get trained, or come, later.

    Args:
        stages: of this process.
    """

    def __init__(self, stages: LocalStages) -> None:
        self._stages = stages
        self.entries()

    def entries(self) -> list[Entry]:
        """Each trained parameter, once, its sum, and whether several ranks' threads add to it.

        Parameters that stand for others on another device come last.

        Raises:
            ValueError, TypeError: a `main_grad` is no tensor that could be the sum; names it.
        """
        shared = self._stages.parameters_of_several_ranks()
        return [
            (parameter, _main_gradient(name, parameter), parameter in shared)
            for _, named in self._stages.named_parameters()
            for name, parameter in named
            if parameter.requires_grad
        ] + [
            (twin, _main_gradient(name, twin), twin in shared)
            for name, twin in self._stages.ties.twins()
            if twin.requires_grad
        ]

    def zero(self) -> None:
        """Sets all sums to zero, in place."""
        if sums := [main for _, main, _ in self.entries()]:
            torch._foreach_zero_(sums)


def main_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The sum of a trained parameter; None if there is none yet."""
    return getattr(parameter, "main_grad", None) if parameter.requires_grad else None


def _main_gradient(name: str, parameter: nn.Parameter) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    given = getattr(parameter, "main_grad", None)
    if given is None:
        given = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        parameter.main_grad = given  # type: ignore[attr-defined]
    if not isinstance(given, Tensor):
        raise TypeError(f"main_grad of {name} must be a tensor, got {type(given).__name__}")
    expected = (dtype, parameter.shape, parameter.device)
    if (given.dtype, given.shape, given.device) != expected:
        raise ValueError(
            f"main_grad of {name} must be {_describe(*expected)}, got "
            f"{_describe(given.dtype, given.shape, given.device)}"
        )
    return given


def _describe(dtype: torch.dtype, shape: torch.Size, device: torch.device) -> str:
    return f"{dtype} of shape {tuple(shape)} on {device}"
