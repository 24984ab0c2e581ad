"""SafetensorsFile: named tensors in one file, of which only those asked for are read."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

_DTYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "U8": torch.uint8,
}
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_PIECE_BYTES = 16 << 20


class TensorEntry(NamedTuple):
    """What the header says of a tensor.

    Attributes:
        dtype: as in the file's header.
        shape: of the tensor.
        begin, end: its bytes, counted from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A file of the safetensors format. Opening it reads the header alone.

    Eight bytes say how long the header is; then it comes, in JSON; then the tensors' bytes.

    Args:
        path: of the file.

    Attributes:
        path: as given.
        entries: the tensors by name.
        bytes_read: so far.

    Raises:
        ValueError: it isn't such a file, or is damaged; the message says where.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        self.path = os.fspath(path)
        self.bytes_read = 0
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            size = os.fstat(self._file.fileno()).st_size
            self.entries = self._read_header(size)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU."""
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise ValueError(f"{self.path}: tensor {name!r} is of dtype {entry.dtype}: unknown")
        read = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
        self.read_into(name, read)
        return read

    def read_into(self, name: str, target: Tensor) -> None:
        """Copies a tensor into `target`: of the same shape, and of a dtype that `check` allows.

        Raises:
            ValueError: it doesn't fit, or the file has become shorter.
        """
        self.check(name, target)
        entry = self.entries[name]
        dtype = _DTYPES[entry.dtype]
        flat = target.detach().view(-1)  # contiguous: an own tensor of who loads
        buffer = bytearray(min(_PIECE_BYTES, entry.end - entry.begin))
        done = 0
        for begin in range(entry.begin, entry.end, _PIECE_BYTES):
            piece = memoryview(buffer)[: min(_PIECE_BYTES, entry.end - begin)]
            self._read(begin, piece, f"tensor {name!r}")
            values = torch.frombuffer(piece, dtype=dtype)
            flat[done : done + values.numel()].copy_(values)
            done += values.numel()

    def check(self, name: str, target: Tensor) -> None:
        """Checks that the tensor can be read into `target`: both of floating point, or both alike.

        Raises:
            ValueError: the message says what differs.
        """
        entry = self.entries[name]
        if entry.shape != tuple(target.shape):
            raise ValueError(
                f"{self.path}: tensor {name!r} must have shape {tuple(target.shape)}, got "
                f"{entry.shape}"
            )
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None or (
            dtype != target.dtype
            and not (dtype.is_floating_point and target.dtype.is_floating_point)
        ):
            raise ValueError(
                f"{self.path}: tensor {name!r} must be of a dtype that fits {target.dtype}, got "
                f"{entry.dtype}"
            )

    def _read(self, begin: int, into: memoryview, what: str) -> None:
        self._file.seek(begin)
        done = 0
        while done < len(into):
            count = self._file.readinto(into[done:])
            if not count:
                raise ValueError(
                    f"{self.path}: {what} ends at byte {begin + done}, expected it to end at "
                    f"{begin + len(into)}: the file is cut short"
                )
            done += count
            self.bytes_read += count

    def _read_header(self, size: int) -> dict[str, TensorEntry]:
        if size < 8:
            raise self._bad(f"expected at least 8 bytes, got {size}")
        length_bytes = bytearray(8)
        self._read(0, memoryview(length_bytes), "the header's length")
        length = int.from_bytes(length_bytes, "little")
        if length > min(size - 8, _MOST_HEADER_BYTES):
            raise self._bad(
                f"expected a header of at most {min(size - 8, _MOST_HEADER_BYTES)} bytes, got one "
                f"of {length}"
            )
        header = bytearray(length)
        self._read(8, memoryview(header), "the header")
        try:
            content = json.loads(header.decode("utf-8"), object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise self._bad(f"the header is no JSON object: {error}") from error
        if not isinstance(content, dict):
            raise self._bad(f"expected a JSON object as header, got a {type(content).__name__}")
        content.pop("__metadata__", None)
        entries = {name: self._entry(name, of, 8 + length) for name, of in content.items()}
        self._check_bounds(entries, 8 + length, size)
        return entries

    def _entry(self, name: str, given: Any, start: int) -> TensorEntry:
        if not isinstance(given, Mapping):
            raise self._bad(f"tensor {name!r}: expected a JSON object, got {given!r}")
        dtype, shape, offsets = (given.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str):
            raise self._bad(f"tensor {name!r}: expected a dtype, got {dtype!r}")
        if not _are_counts(shape):
            raise self._bad(f"tensor {name!r}: expected a shape, got {shape!r}")
        if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._bad(f"tensor {name!r}: expected data_offsets [begin, end], got {offsets!r}")
        entry = TensorEntry(dtype, tuple(shape), start + offsets[0], start + offsets[1])
        if dtype in _DTYPES:
            expected = _DTYPES[dtype].itemsize
            for count in shape:
                expected *= count
            if offsets[1] - offsets[0] != expected:
                raise self._bad(
                    f"tensor {name!r}: expected {expected} bytes for {dtype} of shape "
                    f"{entry.shape}, got data_offsets {offsets}"
                )
        return entry

    def _check_bounds(self, entries: Mapping[str, TensorEntry], start: int, size: int) -> None:
        """The tensors' bytes follow each other, from behind the header to the end of the file."""
        end = start
        for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
            if entry.begin != end:
                word = "overlaps the one before it" if entry.begin < end else "leaves a gap"
                raise self._bad(
                    f"tensor {name!r} {word}: expected it to begin at byte {end}, got {entry.begin}"
                )
            end = entry.end
        if end != size:
            raise self._bad(f"expected {end} bytes by the header, got {size}")

    def _bad(self, reason: str) -> ValueError:
        return ValueError(f"{self.path} is not a whole safetensors file: {reason}")


def _are_counts(given: Any) -> TypeGuard[list[int]]:
    return isinstance(given, list) and all(type(count) is int and count >= 0 for count in given)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r} comes twice")
    return content
