"""Loading a model's state into the stages of one process, all or nothing."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipert.local.local_stage import LocalStage


def check_state(
    stages: Sequence[LocalStage],
    state_dict: Mapping[str, Tensor],
    global_names: set[str] | None,
    num_stages: int,
) -> None:
    """Checks that `state_dict` fits the stages.

    Args:
        stages: of this process.
        state_dict: by the names of the unpartitioned model.
        global_names: all names of the unpartitioned model, if they are known here; else they
            begin with the number of their stage.
        num_stages: of the whole model.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(k, str) for k in state_dict):
        raise TypeError(
            f"state_dict must be a dict of tensors by name, got {type(state_dict).__name__}"
        )
    own = {name: value for stage in stages for name, value in stage.state_dict().items()}
    if missing := sorted(own.keys() - state_dict.keys()):
        raise ValueError(f"state_dict lacks {_some(missing)}")
    indices = {str(index) for index in range(num_stages)} - {str(s.piece) for s in stages}
    unknown = sorted(
        name
        for name in state_dict.keys() - own.keys()
        if (
            name not in global_names
            if global_names is not None
            else name.partition(".")[0] not in indices
        )
    )
    if unknown:
        raise ValueError(f"state_dict has names that the model does not have: {_some(unknown)}")
    for name, value in own.items():
        if isinstance(value, Tensor) and not isinstance(state_dict[name], Tensor):
            raise TypeError(
                f"state_dict[{name!r}] must be a tensor, got {type(state_dict[name]).__name__}"
            )
        if isinstance(value, Tensor) and value.shape != state_dict[name].shape:
            raise ValueError(
                f"state_dict[{name!r}] must have shape {tuple(value.shape)}, got "
                f"{tuple(state_dict[name].shape)}"
            )


def copy_state(stages: Sequence[LocalStage], state_dict: Mapping[str, Tensor]) -> None:
    """Copies into the stages what is theirs of a `state_dict` that fits them."""
    for stage in stages:
        if isinstance(stage.call, torch.nn.Module):
            size = len(stage.prefix)
            stage.call.load_state_dict(
                {name[size:]: state_dict[name] for name in stage.state_dict()}
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
