"""materialize: stages that were built without values get them, each on its own rank."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from pipert.checkpoints.checkpoint_files import CheckpointFiles, some_names
from pipert.checkpoints.stage_builder import Sources, StageBuilder
from pipert.checkpoints.tensor_source import TensorSource
from pipert.stages import Stages


def materialize(
    stages: Stages,
    checkpoint: "str | os.PathLike[str] | TensorSource | None" = None,
    device: "str | torch.device" = "cpu",
    dtype: torch.dtype | None = None,
    *,
    seed: int = 0,
    init_weights: Callable[[nn.Module], Any] | None = None,
    rename: Callable[[str], str | None] | None = None,
) -> Stages:
    """Stages that a rank builds, and gives values, when it makes its Pipeline: its own ones alone.

    With `checkpoint`, parameters and buffers come from there, by their names in the unpartitioned
    model; no other bytes are read. A weight that several layers share needs one of its names.
    Floating-point numbers are converted to the stage's dtype. Without it, what is on the meta
    device is initialised; the rest keeps its values.

    Args:
        stages: as `split` returns them, of a model that was built under `torch.device("meta")`;
            they stay as they are.
        checkpoint: a safetensors file, or a folder with `model.safetensors`, or with shards and
            their index, as safetensors writes them; or a TensorSource, such as
            `pipert.integrations.transformers.open_checkpoint` returns.
        device: where stages are built.
        dtype: of their floating-point parameters and saved buffers; None: the model's.
        seed: without checkpoint: what first values are drawn with. They are equal under every
            partition. Devices of different types draw different numbers.
        init_weights: `init_weights(module)` gives one module's own parameters first values, after
            its `reset_parameters`; None: as transformers' model does, if the stages are of one.
            With a checkpoint it is asked for the buffers that a checkpoint doesn't have.
            Parameters of a module that a trace looked into are in a stand-in of another class.
        rename: from a tensor's name in the checkpoint to the one in the model; None: leave it out.

    Returns:
        Builders, with the specs of `stages`. To build one by hand, call it.

    Raises:
        ValueError: the checkpoint isn't whole, or lacks a name, or has one that the model hasn't.
            Wrong shapes and dtypes raise when the stage is built, before anything is read.
    """
    if not isinstance(stages, Stages):
        raise TypeError(f"stages must be what split returns, got {type(stages).__name__}")
    files = _open(checkpoint, rename)
    aliases = _aliases(stages)
    if files is not None:
        try:
            _check_names(stages, files, aliases)
        finally:
            files.close()
    sources = Sources(files, aliases, seed, init_weights)
    shared: WeakValueDictionary[tuple[str, torch.device], nn.Parameter] = WeakValueDictionary()
    lock = threading.Lock()
    builders = [
        StageBuilder(stage, torch.device(device), dtype, sources, shared, lock) for stage in stages
    ]
    return stages.with_modules(builders)


def _open(
    checkpoint: "str | os.PathLike[str] | TensorSource | None",
    rename: Callable[[str], str | None] | None,
) -> TensorSource | None:
    if isinstance(checkpoint, str | os.PathLike):
        return CheckpointFiles(checkpoint, rename)
    if rename is not None:
        raise ValueError(f"rename needs a checkpoint's path, got {checkpoint!r}")
    return checkpoint


def _aliases(stages: Stages) -> dict[str, tuple[str, ...]]:
    """All names of each parameter that has several, within a stage or across, its owner's first."""
    groups: dict[str, dict[str, None]] = {}
    for names in _names_together(stages):
        joined = {name: None for of in names for name in (*groups.get(of, ()), of)}
        groups.update(dict.fromkeys(joined, joined))
    return {name: tuple(names) for name, names in groups.items() if len(names) > 1}


def _names_together(stages: Stages) -> Iterable[list[str]]:
    for tied in stages.tied:
        yield [name for _, name in tied.uses]
    by_parameter: dict[nn.Parameter, list[str]] = {}
    for stage in stages:
        if isinstance(stage, nn.Module):
            for name, parameter in stage.named_parameters(remove_duplicate=False):
                by_parameter.setdefault(parameter, []).append(name)
    yield from by_parameter.values()


def _check_names(
    stages: Stages, files: TensorSource, aliases: Mapping[str, tuple[str, ...]]
) -> None:
    needed = {name for names in stages.names for name in names}
    missing = [name for name in needed if not files.names & {name, *aliases.get(name, ())}]
    unknown = files.names - needed
    if missing:
        raise ValueError(f"the checkpoint lacks {some_names(missing)}")
    if unknown:
        raise ValueError(
            "the checkpoint has names that the model does not have: "
            f"{some_names(unknown)}; rename=... can leave them out"
        )
