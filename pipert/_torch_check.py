"""Refuses a torch that the C++ module was not built against, before the module is loaded.

A module of another minor version of torch fails in confusing ways: missing symbols, or crashes.
"""

import json
import sysconfig
from pathlib import Path

_REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall ."


def check_torch() -> None:
    """Checks that `_C` is there and fits the torch that is running.

    Raises:
        ImportError: with the command that mends it.
    """
    import torch

    built = read_built_against(Path(__file__).parent)
    check_torch_version(str(built["torch"]), torch.__version__)
    check_torch_cuda(built["cuda"], torch.version.cuda)


def read_built_against(package: Path) -> dict[str, str | None]:
    """Returns what the build wrote beside `_C`: the versions of "pipert", "torch" and "cuda".

    "cuda" is the CUDA version of the torch whose CUDA libraries `_C` is linked with, None where it
    has no CUDA code.

    Args:
        package: the folder that holds `_C`.

    Raises:
        ImportError: there is no `_C` for this Python.
    """
    tag = sysconfig.get_config_var("SOABI")
    try:
        built: dict[str, str | None] = json.loads((package / f"_C.{tag}.json").read_text())
    except FileNotFoundError:
        raise ImportError(
            f"pipert's C++ module was not built for this Python ({tag}). In pipert's source "
            "folder: pip install --no-build-isolation -e ."
        ) from None
    return built


def check_torch_version(built: str, running: str) -> None:
    """Checks that the minor versions are equal; patch versions and builds may differ.

    Args:
        built: the torch version that `_C` was built against, such as "2.13.0+cpu".
        running: the torch version of this process.

    Raises:
        ImportError: with the command that mends it.
    """
    built_minor, running_minor = (".".join(version.split(".")[:2]) for version in (built, running))
    if built_minor != running_minor:
        raise ImportError(
            f"pipert was built against torch {built}, this process runs torch {running}. Rebuild "
            f"pipert, in its source folder: {_REBUILD}\n"
            f"or go back to the torch that it was built for: pip install 'torch=={built_minor}.*'"
        )


def check_torch_cuda(built: str | None, running: str | None) -> None:
    """Checks that a `_C` with CUDA code meets a torch of the same CUDA major version.

    Args:
        built: the CUDA version that `_C` is linked with, such as "13.0"; None without CUDA.
        running: the CUDA version of the running torch; None without CUDA.

    Raises:
        ImportError: with the command that mends it.
    """
    if built is not None and (running is None or running.split(".")[0] != built.split(".")[0]):
        found = "no CUDA" if running is None else f"CUDA {running}"
        raise ImportError(
            f"pipert was built for a torch with CUDA {built}, this torch has {found}. Rebuild "
            f"pipert, in its source folder: {_REBUILD}"
        )
