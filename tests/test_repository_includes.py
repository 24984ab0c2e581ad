"""The include rules of docs/architecture.md: floors look down and pay for what they use."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"

# The floors that each floor may include besides itself.
BELOW: dict[str, set[str]] = {"base": set()}
BELOW["ir"] = {"base"}
BELOW["schedule"] = {"ir", "base"}
BELOW["analysis"] = {"ir", "base"}
BELOW["plan"] = {"ir", "analysis", "base"}
BELOW["search"] = {"schedule", "analysis", "ir", "base"}
BELOW["shm"] = {"base"}
BELOW["kernels"] = {"base"}
BELOW["cuda"] = {"base"}
BELOW["ipc"] = {"cuda", "shm", "base"}
BELOW["device"] = {"cuda", "base"}
BELOW["autograd"] = {"device", "base"}
BELOW["random"] = {"base"}
BELOW["stage"] = {"autograd", "random", "device", "base"}
BELOW["transport"] = {"device", "ipc", "cuda", "shm", "kernels", "base"}
BELOW["runtime"] = {"plan", "stage", "transport"}.union(
    *(BELOW[floor] for floor in ("plan", "stage", "transport"))
)
BELOW["bindings"] = set(BELOW)

TORCH_FREE = {"base", "ir", "schedule", "analysis", "plan", "search", "shm"}
TORCH_FREE |= {"kernels", "cuda", "ipc"}
TORCH = re.compile(r"(torch|ATen|c10|caffe2|pybind11)/|Python\.h$|nccl\.h$")
PYBIND = re.compile(r"pybind11/|torch/csrc/utils/pybind\.h$|Python\.h$|torch/python\.h$")
C10D = re.compile(r"torch/csrc/distributed/c10d/")
CUDA = re.compile(r"(c10|ATen)/cuda/|torch/csrc/cuda/|cuda(_runtime|_runtime_api)?\.h$|nccl\.h$")

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
CUDA_CONDITION = re.compile(
    r"^\s*#\s*(?:if|ifdef|ifndef|elif|elifdef|elifndef)\b.*(?:CUDA|__NVCC__).*$", re.MULTILINE
)


def find_violations(csrc: Path) -> list[str]:
    """Every broken rule as "floor/file: what is wrong", in the order of the files."""
    violations = []
    files = sorted(path for path in csrc.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})
    for path in files:
        name = path.relative_to(csrc).as_posix()
        source = path.read_text()
        reasons = [reason for header in INCLUDE.findall(source) for reason in judge(name, header)]
        if not is_cuda(name):
            reasons += [f"asks for CUDA: {line.strip()}" for line in CUDA_CONDITION.findall(source)]
        violations += [f"{name}: {reason}" for reason in reasons]
    return violations


def judge(name: str, header: str) -> list[str]:
    """What is wrong with file `name` (relative to csrc) including `header`."""
    floor = name.split("/")[0]
    if floor not in BELOW:
        return [f"{floor} is no floor"]
    reasons = []
    target = header.split("/")[0]
    if header.startswith(".") or "/../" in header:
        reasons.append(f"includes by a relative path: {header}")
    if target in BELOW and target != floor and target not in BELOW[floor]:
        reasons.append(f"{floor} looks up to {header}")
    if floor in TORCH_FREE and TORCH.match(header):
        reasons.append(f"{floor} is torch-free, but includes {header}")
    if floor != "bindings" and PYBIND.match(header):
        reasons.append(f"only bindings may include {header}")
    if C10D.match(header) and not name.startswith("transport/process_group"):
        reasons.append(f"only transport/process_group* may include {header}")
    if CUDA.match(header) and not is_cuda(name):
        reasons.append(
            f"only device/cuda, kernels/cuda and transport/cuda_ipc may include {header}"
        )
    if header == "torch/extension.h":
        reasons.append("nobody includes torch/extension.h: 22 s for each file")
    return reasons


def is_cuda(name: str) -> bool:
    floors = ("cuda/real/", "device/cuda/", "kernels/cuda/", "transport/cuda_ipc/")
    return name.startswith(floors)


def test_every_file_keeps_the_include_rules():
    assert any(CSRC.rglob("*.h")), "csrc has no headers: the test looks in the wrong place"
    assert find_violations(CSRC) == []


@pytest.mark.parametrize(
    ("name", "line", "complaint"),
    [
        ("ir/a.h", '#include "plan/program.h"', "looks up"),
        ("schedule/a.cpp", '#include "analysis/verify.h"', "looks up"),
        ("plan/a.cpp", '#include "schedule/registry.h"', "looks up"),
        ("plan/a.cpp", '#include "search/search.h"', "looks up"),
        ("search/a.cpp", '#include "plan/program.h"', "looks up"),
        ("runtime/a.cpp", '#include "schedule/registry.h"', "looks up"),
        ("stage/a.cpp", '#include "transport/channel.h"', "looks up"),
        ("transport/a.cpp", '#include "stage/stage.h"', "looks up"),
        ("device/a.cpp", '#include "ir/action.h"', "looks up"),
        ("base/a.h", "#include <c10/util/Exception.h>", "torch-free"),
        ("analysis/a.h", "#  include <ATen/core/Tensor.h>", "torch-free"),
        ("ir/a.h", '#include "torch/csrc/autograd/edge.h"', "torch-free"),
        ("plan/a.cpp", "#include <pybind11/pybind11.h>", "only bindings"),
        ("runtime/a.cpp", "#include <torch/csrc/utils/pybind.h>", "only bindings"),
        ("stage/a.cpp", "#include <Python.h>", "only bindings"),
        (
            "runtime/a.cpp",
            "#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>",
            "only transport/process_group",
        ),
        ("device/a.cpp", "#include <c10/cuda/CUDAStream.h>", "only device/cuda"),
        ("transport/a.cpp", "#include <cuda_runtime.h>", "only device/cuda"),
        ("kernels/a.h", "#include <cuda_runtime.h>", "only device/cuda"),
        ("kernels/cuda/a.cu", "#include <c10/cuda/CUDAStream.h>", "torch-free"),
        ("cuda/a.h", "#include <cuda_runtime_api.h>", "only device/cuda"),
        ("ipc/a.h", "#include <cuda.h>", "only device/cuda"),
        ("device/a.cpp", "#ifdef USE_CUDA", "asks for CUDA"),
        ("runtime/a.h", "#if defined(PIPERT_WITH_CUDA) && 1", "asks for CUDA"),
        ("bindings/a.cpp", "#include <torch/extension.h>", "torch/extension.h"),
        ("ir/a.h", '#include "../plan/program.h"', "relative path"),
        ("misc/a.h", "#include <vector>", "no floor"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path, name, line, complaint):
    planted = tmp_path / name
    planted.parent.mkdir(parents=True)
    planted.write_text(f"// A comment.\n#pragma once\n{line}\n")
    violations = find_violations(tmp_path)
    assert violations
    assert any(name in violation and complaint in violation for violation in violations)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("plan/a.cpp", '#include "analysis/verify.h"'),
        ("search/a.cpp", '#include "schedule/registry.h"'),
        ("runtime/a.cpp", '#include "transport/channel.h"'),
        ("transport/process_group_channel.cpp", "#include <torch/csrc/distributed/c10d/Work.hpp>"),
        ("bindings/a.cpp", "#include <torch/csrc/utils/pybind.h>"),
        ("device/cuda/a.cpp", "#include <c10/cuda/CUDAStream.h>"),
        ("device/cuda/a.cu", "#ifdef __CUDA_ARCH__"),
        ("kernels/cuda/a.cu", "#include <cuda_runtime.h>"),
        ("cuda/real/cuda_api.cpp", "#include <cuda.h>"),
        ("transport/cuda_ipc/a.cpp", '#include "ipc/pusher.h"'),
        ("device/lane.h", "// #ifdef USE_CUDA is not the way"),
        ("ir/a.h", "#include <vector>"),
    ],
)
def test_what_the_rules_allow_is_not_caught(tmp_path, name, line):
    allowed = tmp_path / name
    allowed.parent.mkdir(parents=True)
    allowed.write_text(f"{line}\n")
    assert find_violations(tmp_path) == []
