"""DTensors between stages: their local parts travel, and become DTensors again behind."""

import pickle
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipert import _C

GetMesh = Callable[[tuple[str, ...], Any], Any]

_LOCAL, _FORM = "dtensor's local part", "dtensor's form"

_hooks: "WeakKeyDictionary[nn.Module, list[RemovableHandle]]" = WeakKeyDictionary()


class DTensorEdges:
    """What a stage hands over as DTensors, and gets from the stage before.

    Both are handed over as dicts of a plain tensor and a text: the mesh's names and layout, the
    placements, size and strides. The ranks of a stage and of the next one hold equal parts.

    Args:
        examples: DTensors whose meshes are known here.
        get_mesh: `get_mesh(mesh_dim_names, mesh_layout)` finds those that aren't.
        is_first: whether the stage is the first: what it gets is the user's.
        is_last: whether it is the last: what it returns is for the loss function.
    """

    def __init__(
        self, examples: Iterable[Any], get_mesh: GetMesh | None, is_first: bool, is_last: bool
    ) -> None:
        self._get_mesh = get_mesh
        self._is_first, self._is_last = is_first, is_last
        self._meshes = {_key(e.device_mesh): e.device_mesh for e in examples if is_dtensor(e)}

    def put_on(self, module: nn.Module) -> None:
        """Has the module get and return DTensors in a pipeline; the last edges put on it count."""
        for handle in _hooks.pop(module, []):
            handle.remove()
        handles = []
        if not self._is_first:
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
        if not self._is_last:
            handles.append(module.register_forward_hook(self._after))
        _hooks[module] = handles

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if _C.current_microbatch() is None:
            return None
        return tuple(self._unpacked(arg) for arg in args), kwargs

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if _C.current_microbatch() is None:
            return None
        return _packed(output)

    def _unpacked(self, value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {_LOCAL, _FORM}:
            key, placements, shape, stride = _read(value[_FORM])
            return sys.modules["torch.distributed.tensor"].DTensor.from_local(
                value[_LOCAL],
                self._mesh(key),
                placements,
                run_check=False,
                shape=shape,
                stride=stride,
            )
        if type(value) in (list, tuple):
            return type(value)(self._unpacked(part) for part in value)
        if type(value) is dict:
            return {name: self._unpacked(part) for name, part in value.items()}
        return value

    def _mesh(self, key: tuple[tuple[str, ...], Any]) -> Any:
        if key not in self._meshes:
            mesh = None if self._get_mesh is None else self._get_mesh(*key)
            if mesh is None:
                raise ValueError(
                    f"a DTensor came on a mesh with the dimensions {key[0]}, layout {key[1]}: "
                    "expected PipelineStage(get_mesh=...) to find it, or a DTensor in input_args"
                )
            self._meshes[key] = mesh
        return self._meshes[key]


def is_dtensor(value: Any) -> bool:
    """Whether it is one; where nobody has imported them there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def _packed(value: Any) -> Any:
    if is_dtensor(value):
        form = (_key(value.device_mesh), value.placements, value.size(), value.stride())
        return {_LOCAL: _waited(value.to_local()), _FORM: _written(form)}
    if type(value) in (list, tuple):
        return type(value)(_packed(part) for part in value)
    if type(value) is dict:
        return {name: _packed(part) for name, part in value.items()}
    return value


def _waited(local: Tensor) -> Tensor:
    """Not one that is still under way."""
    return local if type(local) in (Tensor, nn.Parameter) else local.clone()


def _key(mesh: Any) -> tuple[tuple[str, ...], Any]:
    return tuple(mesh.mesh_dim_names or ()), mesh._layout


@lru_cache
def _written(form: Any) -> str:
    return pickle.dumps(form).hex()


@lru_cache
def _read(text: str) -> Any:
    return pickle.loads(bytes.fromhex(text))
