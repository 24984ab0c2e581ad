"""CheckpointFiles: a model's tensors in one safetensors file, or in several with an index."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from pipert.checkpoints.safetensors_file import SafetensorsFile

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class CheckpointFiles:
    """Where each tensor of a checkpoint is. A file is opened when one of its tensors is asked for.

    Args:
        path: a safetensors file, an index of such files, or a folder with `model.safetensors` or
            `model.safetensors.index.json`, as transformers writes them.
        rename: from a tensor's name in the files to the one in the model; None: leave it out.

    Attributes:
        names: of the model's tensors that are there.

    Raises:
        ValueError: there is no such file, or a name comes twice.
    """

    def __init__(
        self, path: "str | os.PathLike[str]", rename: Callable[[str], str | None] | None = None
    ) -> None:
        self._open: dict[str, SafetensorsFile] = {}
        self._places: dict[str, tuple[str, str]] = {}
        self._num_closed_bytes = 0
        for given, file in self._given(os.fspath(path)).items():
            name = given if rename is None else rename(given)
            if name is None:
                continue
            if name in self._places:
                raise ValueError(
                    f"rename must give each tensor a name of its own, got {name!r} for "
                    f"{self._places[name][1]!r} and {given!r}"
                )
            self._places[name] = (file, given)
        self.names = self._places.keys()

    @property
    def bytes_read(self) -> int:
        """Of the safetensors files, so far."""
        return self._num_closed_bytes + sum(file.bytes_read for file in self._open.values())

    def check(self, name: str, target: Tensor) -> None:
        """Checks that the tensor can be read into `target`.

        Raises:
            ValueError: the message says what differs.
        """
        file, given = self._places[name]
        self._at(file, given).check(given, target)

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU."""
        file, given = self._places[name]
        return self._at(file, given).read(given)

    def read_into(self, name: str, target: Tensor) -> None:
        """Copies the tensor into `target`, a contiguous one."""
        file, given = self._places[name]
        self._at(file, given).read_into(given, target)

    def close(self) -> None:
        """Closes the files; they open again when they are asked."""
        self._num_closed_bytes = self.bytes_read
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _at(self, path: str, name: str) -> SafetensorsFile:
        if path not in self._open:
            self._open[path] = SafetensorsFile(path)
        if name not in self._open[path].entries:
            raise ValueError(f"{path} has no tensor {name!r}: expected it there by the index")
        return self._open[path]

    def _given(self, path: str) -> Mapping[str, str]:
        """By name in the files, where each tensor is."""
        if os.path.isdir(path):
            found = [os.path.join(path, name) for name in (_INDEX, _SINGLE)]
            there = [file for file in found if os.path.isfile(file)]
            if not there:
                names = some_names(os.listdir(path))
                raise ValueError(f"expected {_SINGLE} or {_INDEX} in {path}, got {names}")
            path = there[0]
        if not os.path.isfile(path):
            raise ValueError(f"checkpoint must be a file or a folder, got {path!r}: nothing there")
        if path.endswith(".json"):
            return _places_of_index(path)
        self._open[path] = SafetensorsFile(path)
        return dict.fromkeys(self._open[path].entries, path)


def _places_of_index(path: str) -> dict[str, str]:
    folder = os.path.dirname(path)
    try:
        with open(path, encoding="utf-8") as file:
            content: Any = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise ValueError(f"{path} must be a JSON object with a weight_map, got {content!r:.80}")
    for name, file in files.items():
        if not isinstance(file, str) or file != os.path.basename(file) or file in ("", ".", ".."):
            raise ValueError(
                f"{path}: expected the name of a file in the same folder for {name!r}, got {file!r}"
            )
    return {name: os.path.join(folder, file) for name, file in files.items()}


def some_names(names: Iterable[str]) -> str:
    """The first five, and how many more there are."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:5]) or "nothing"
    return shown if len(ordered) <= 5 else f"{shown} and {len(ordered) - 5} more"
