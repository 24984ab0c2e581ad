"""A differentiable operator written in C++, compiled when it is first asked for."""

import functools
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch

SOURCE = r"""
#include <ATen/ops/matmul.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <atomic>

namespace {

std::atomic<std::int64_t> num_backwards{0};

struct ScaledMatmul : public torch::autograd::Function<ScaledMatmul> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& w) {
    context->save_for_backward({x, w});
    return at::matmul(x, w);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    ++num_backwards;
    const auto saved = context->get_saved_variables();
    return {at::matmul(gradients[0], saved[1].t()).mul(0.9),
            at::matmul(saved[0].t(), gradients[0]).mul(1.1)};
  }
};

at::Tensor scaled_matmul(const at::Tensor& x, const at::Tensor& w) {
  return ScaledMatmul::apply(x, w);
}

}  // namespace

TORCH_LIBRARY(pipert_test, library) {
  library.def("scaled_matmul(Tensor x, Tensor w) -> Tensor");
  library.impl("scaled_matmul", c10::DispatchKey::CompositeImplicitAutograd, &scaled_matmul);
  library.def("num_backwards() -> int", []() -> std::int64_t { return num_backwards; });
}
"""


@functools.cache
def scaled_matmul():
    """`x @ w` with a backward that isn't quite its derivative, as an autograd::Function."""
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "operator.cpp", Path(folder) / "operator.so"
        source.write_text(SOURCE)
        subprocess.run(
            [
                *("g++", "-std=c++20", "-O0", "-fPIC", "-shared", str(source), "-o", str(library)),
                *(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",),
                *(f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"),
                f"-I{sysconfig.get_paths()['include']}",
                *(f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"),
            ],
            check=True,
            timeout=300,
        )
        torch.ops.load_library(str(library))
    return torch.ops.pipert_test.scaled_matmul
