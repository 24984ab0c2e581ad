"""SafetensorsFile: what is asked for is read, bit for bit, and bad files say what is wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_writer import data_of, header_of, write, write_raw

from pipert.checkpoints import safetensors_file
from pipert.checkpoints.safetensors_file import SafetensorsFile

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "a.count": torch.tensor(7, dtype=torch.int64),
    "half": torch.randn(5).to(torch.bfloat16),
    "empty": torch.empty(0, 3),
    "flags": torch.tensor([True, False, True]),
}


def test_every_tensor_is_read_bit_for_bit(tmp_path):
    with SafetensorsFile(write(tmp_path / "x.safetensors", TENSORS)) as file:
        assert file.entries.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            read = torch.empty_like(tensor)
            file.read_into(name, read)
            assert torch.equal(read, tensor)


def test_a_tensor_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_PIECE_BYTES", 16)
    tensor = torch.randn(7, 3)
    with SafetensorsFile(write(tmp_path / "x.safetensors", {"x": tensor})) as file:
        read = torch.empty_like(tensor)
        file.read_into("x", read)
    assert torch.equal(read, tensor)


def test_floating_point_is_converted(tmp_path):
    with SafetensorsFile(write(tmp_path / "x.safetensors", TENSORS)) as file:
        read = torch.empty(5)
        file.read_into("half", read)
    assert torch.equal(read, TENSORS["half"].float())


def test_files_of_the_safetensors_library_are_read(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="safetensors isn't installed")
    library.save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        for name, tensor in TENSORS.items():
            read = torch.empty_like(tensor)
            file.read_into(name, read)
            assert torch.equal(read, tensor)


def test_no_other_bytes_are_read(tmp_path):
    tensors = {"small": torch.randn(3), "large": torch.randn(100_000), "last": torch.randn(2)}
    path = write(tmp_path / "x.safetensors", tensors)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    before = bytes_read_by_this_process()
    with SafetensorsFile(path) as file:
        file.read_into("last", torch.empty(2))
        file.read_into("small", torch.empty(3))
        assert file.bytes_read == 8 + header + 4 * 5
    assert bytes_read_by_this_process() - before < 8 + header + 10_000


def bytes_read_by_this_process() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def entry(**changes: Any) -> bytes:
    return json.dumps(
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}
    ).encode()


@pytest.mark.parametrize(
    ("header", "num_bytes", "message"),
    [
        (b"{", 0, "no JSON object"),
        (b"[1]", 0, "expected a JSON object as header, got a list"),
        (b"\xff{}", 0, "no JSON object"),
        (b"[" * 100_000, 0, "no JSON object"),
        (b'{"x": 3}', 0, "tensor 'x': expected a JSON object, got 3"),
        (entry()[:-1] + b"," + entry()[1:], 8, "the name 'x' comes twice"),
        (entry(dtype=3), 8, "expected a dtype, got 3"),
        (entry(shape="2"), 8, "expected a shape, got '2'"),
        (entry(shape=[-2]), 8, r"expected a shape, got \[-2\]"),
        (entry(shape=[True]), 8, r"expected a shape, got \[True\]"),
        (entry(data_offsets=[8, 0]), 8, r"expected data_offsets \[begin, end\], got \[8, 0\]"),
        (entry(data_offsets=[0]), 8, r"expected data_offsets \[begin, end\], got \[0\]"),
        (entry(data_offsets=[0, 12]), 12, "expected 8 bytes for F32 of shape"),
        (entry(shape=[10**30]), 8, "bytes for F32 of shape"),
        (entry(data_offsets=[4, 12]), 12, "leaves a gap"),
        (entry(), 4, "bytes by the header, got"),
        (entry(), 12, "bytes by the header, got"),
        (b"{}", 4, "bytes by the header, got"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header, num_bytes, message):
    path = write_raw(tmp_path / "x.safetensors", header, bytes(num_bytes))
    with pytest.raises(ValueError, match=f"not a whole safetensors file: .*{message}"):
        SafetensorsFile(path)


def test_overlapping_tensors_are_refused(tmp_path):
    header = header_of({"x": torch.empty(2), "y": torch.empty(2)})
    header["y"]["data_offsets"] = [4, 12]
    path = write_raw(tmp_path / "x.safetensors", json.dumps(header).encode(), bytes(12))
    with pytest.raises(ValueError, match="tensor 'y' overlaps the one before it"):
        SafetensorsFile(path)


@pytest.mark.parametrize("content", [b"", b"1234567", (1 << 60).to_bytes(8, "little") + b"{}"])
def test_a_file_that_ends_in_its_header_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole safetensors file: expected"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_a_file_that_is_cut_short_while_it_is_open_is_an_error_not_a_crash(tmp_path):
    path = write(tmp_path / "x.safetensors", {"x": torch.randn(1000)})
    with SafetensorsFile(path) as file:
        with open(path, "r+b") as shorter:
            shorter.truncate(200)
        with pytest.raises(ValueError, match="the file is cut short"):
            file.read_into("x", torch.empty(1000))


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("a.weight", torch.empty(4, 3), r"must have shape \(4, 3\), got \(3, 4\)"),
        ("a.weight", torch.empty(3, 4, dtype=torch.int64), "dtype that fits torch.int64, got F32"),
        ("a.count", torch.tensor(0.0), "dtype that fits torch.float32, got I64"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(tmp_path, name, target, message):
    with (
        SafetensorsFile(write(tmp_path / "x.safetensors", TENSORS)) as file,
        pytest.raises(ValueError, match=message),
    ):
        file.read_into(name, target)


def test_a_dtype_that_torch_lacks_is_an_error_of_its_tensor_alone(tmp_path):
    header = {"x": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}, **header_of({})}
    header["y"] = {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}
    data = bytes(2) + data_of({"y": torch.ones(1)})
    with SafetensorsFile(
        write_raw(tmp_path / "x.safetensors", json.dumps(header).encode(), data)
    ) as file:
        read = torch.empty(1)
        file.read_into("y", read)
        assert read == 1
        with pytest.raises(ValueError, match="got F4"):
            file.read_into("x", torch.empty(3))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_to_a_file_is_another_error(tmp_path_factory, data):
    """Bytes changed or left out anywhere: either it is refused, or it still reads."""
    path = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    content = bytearray(write(path, TENSORS).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(ValueError), SafetensorsFile(path) as file:
        for name, of in file.entries.items():
            read = torch.full(of.shape, 0.5)
            file.read_into(name, read)
            assert of.end <= path.stat().st_size
