// The kernels over many tensors, for Python: tensors of the CPU take the references, those of CUDA
// the kernels, on the current stream of their device.

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "bindings/bind.h"
#include "device/current_stream.h"
#include "kernels/accumulate.h"
#include "kernels/finite_check.h"
#include "kernels/flag.h"
#include "kernels/pack.h"

namespace py = pybind11;

namespace pipert {
namespace {

using kernels::Element;
using kernels::Format;
using kernels::Piece;
using Tensors = std::vector<at::Tensor>;

// What all tensors of a call lie on.
class Place {
 public:
  explicit Place(const char* call) : call_(call) {}

  // ValueError for a tensor that isn't contiguous, or lies elsewhere than those before it.
  void add(const at::Tensor& tensor, const std::string& name) {
    if (tensor.layout() != at::kStrided || !tensor.is_contiguous())
      throw ValueError(concat(call_, ": expected contiguous tensors, ", name, " isn't"));
    if (!tensor.is_cpu() && !tensor.is_cuda())
      throw ValueError(concat(call_, ": expected tensors of the CPU or of CUDA, ", name, " is on ",
                              tensor.device().str()));
    if (!device_.has_value()) device_ = tensor.device();
    if (*device_ != tensor.device())
      throw ValueError(concat(call_, ": expected all tensors on ", device_->str(), ", ", name,
                              " is on ", tensor.device().str()));
  }
  void add(const Tensors& tensors, const char* name) {
    for (std::size_t i = 0; i < tensors.size(); ++i) add(tensors[i], concat(name, "[", i, "]"));
  }
  // A single number that a call reads or writes.
  template <typename Word>
  Word* add_word(const at::Tensor& tensor, at::ScalarType type, const char* name) {
    add(tensor, name);
    if (tensor.scalar_type() != type || tensor.numel() != 1)
      throw ValueError(concat(call_, ": expected one ", c10::toString(type), " in ", name, ", got ",
                              tensor.numel(), " ", c10::toString(tensor.scalar_type())));
    return static_cast<Word*>(tensor.data_ptr());
  }

  const char* call() const { return call_; }
  at::Device device() const { return device_.value_or(at::Device(at::kCPU)); }

  // function(stream...): without one on the CPU. Python goes on meanwhile.
  template <typename Function>
  auto run(const Function& function) const {
    const py::gil_scoped_release no_gil;
    if (device().is_cpu()) return function();
    const c10::DeviceGuard guard(device());
    return function(current_stream(device()));
  }

 private:
  const char* call_;
  std::optional<at::Device> device_;
};

Piece number_piece(const at::Tensor& tensor, const char* call, std::size_t index) {
  Element element{};
  if (tensor.scalar_type() == at::kFloat) {
    element = Element::kFloat32;
  } else if (tensor.scalar_type() == at::kBFloat16) {
    element = Element::kBFloat16;
  } else if (tensor.scalar_type() == at::kHalf) {
    element = Element::kFloat16;
  } else {
    throw ValueError(concat(call, ": expected float32, bfloat16 or float16, tensor ", index, " is ",
                            c10::toString(tensor.scalar_type())));
  }
  return {tensor.data_ptr(), tensor.numel(), element};
}

std::vector<Piece> number_pieces(const Tensors& tensors, const char* call) {
  std::vector<Piece> pieces;
  pieces.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors)
    pieces.push_back(number_piece(tensor, call, pieces.size()));
  return pieces;
}

std::vector<Piece> pieces_of(const Tensors& tensors, Format format, const char* call) {
  if (format != Format::kAsIs) return number_pieces(tensors, call);
  std::vector<Piece> pieces;
  pieces.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors)
    pieces.push_back(
        {tensor.data_ptr(), static_cast<std::int64_t>(tensor.nbytes()), Element::kByte});
  return pieces;
}

// Autograd finds out if it had saved what is now overwritten.
void mark_written(const Tensors& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

std::byte* add_slot(Place& place, const at::Tensor& slot, std::span<const Piece> pieces,
                    Format format) {
  place.add(slot, "slot");
  if (slot.scalar_type() != at::kByte)
    throw ValueError(concat(place.call(), ": expected a slot of uint8, got ",
                            c10::toString(slot.scalar_type())));
  const std::int64_t num_bytes = kernels::SlotLayout(pieces, format).num_bytes();
  if (slot.numel() < num_bytes)
    throw ValueError(concat(place.call(), ": expected a slot of at least ", num_bytes,
                            " bytes, got ", slot.numel()));
  return static_cast<std::byte*>(slot.data_ptr());
}

std::int64_t packed_bytes(const Tensors& tensors, const std::string& name) {
  const Format format = kernels::format_of(name);
  return kernels::SlotLayout(pieces_of(tensors, format, "packed_bytes"), format).num_bytes();
}

std::int64_t pack(const Tensors& tensors, const at::Tensor& slot, const std::string& name) {
  const Format format = kernels::format_of(name);
  Place place("pack");
  place.add(tensors, "tensors");
  const std::vector<Piece> pieces = pieces_of(tensors, format, "pack");
  std::byte* bytes = add_slot(place, slot, pieces, format);
  const std::int64_t used =
      place.run([&](auto... stream) { return kernels::pack(pieces, format, bytes, stream...); });
  mark_written({slot});
  return used;
}

std::int64_t unpack(const at::Tensor& slot, const Tensors& tensors, const std::string& name) {
  const Format format = kernels::format_of(name);
  Place place("unpack");
  place.add(tensors, "tensors");
  const std::vector<Piece> pieces = pieces_of(tensors, format, "unpack");
  const std::byte* bytes = add_slot(place, slot, pieces, format);
  const std::int64_t used =
      place.run([&](auto... stream) { return kernels::unpack(pieces, format, bytes, stream...); });
  mark_written(tensors);
  return used;
}

void accumulate(const Tensors& gradients, const Tensors& mains) {
  Place place("accumulate");
  place.add(gradients, "gradients");
  place.add(mains, "mains");
  const std::vector<Piece> from = number_pieces(gradients, "accumulate");
  const std::vector<Piece> to = number_pieces(mains, "accumulate");
  place.run([&](auto... stream) { kernels::accumulate(from, to, stream...); });
  mark_written(mains);
}

void check_finite(const Tensors& tensors, const at::Tensor& flag, const at::Tensor& norm) {
  Place place("check_finite");
  place.add(tensors, "tensors");
  kernels::FiniteResult result{};
  result.flag = place.add_word<std::int32_t>(flag, at::kInt, "flag");
  result.norm = place.add_word<float>(norm, at::kFloat, "norm");
  const std::vector<Piece> pieces = number_pieces(tensors, "check_finite");
  at::Tensor partial_sums;  // given back at the end, for work that comes later on the same stream
  if (!place.device().is_cpu()) {
    partial_sums = at::empty({static_cast<std::int64_t>(kernels::kMaxPartialSums)},
                             at::TensorOptions(place.device()).dtype(at::kDouble));
    result.partial_sums = static_cast<double*>(partial_sums.data_ptr());
  }
  place.run([&](auto... stream) { kernels::check_finite(pieces, result, stream...); });
  mark_written({flag, norm});
}

void write_flag(const at::Tensor& flag, std::int32_t value) {
  Place place("write_flag");
  auto* word = place.add_word<std::uint32_t>(flag, at::kInt, "flag");
  place.run([&](auto... stream) {
    kernels::write_flag(word, static_cast<std::uint32_t>(value), stream...);
  });
}

void wait_flag(const at::Tensor& flag, std::int32_t value, std::int64_t max_polls,
               const std::optional<at::Tensor>& abort, const std::optional<at::Tensor>& outcome) {
  Place place("wait_flag");
  if (max_polls < 1)
    throw ValueError(concat("wait_flag: expected max_polls of at least 1, got ", max_polls));
  kernels::FlagWait wait{};
  wait.flag = place.add_word<std::uint32_t>(flag, at::kInt, "flag");
  wait.value = static_cast<std::uint32_t>(value);
  wait.max_polls = max_polls;
  if (abort) wait.abort = place.add_word<std::uint32_t>(*abort, at::kInt, "abort");
  if (outcome) wait.outcome = place.add_word<std::uint32_t>(*outcome, at::kInt, "outcome");
  place.run([&](auto... stream) { kernels::wait_flag(wait, stream...); });
}

struct Kernels {};

}  // namespace

void bind_kernels(py::module_& module) {
  py::class_<Kernels>(module, "kernels", R"(Work on many tensors at once. Not for users.

On CUDA it is enqueued on the current stream of the tensors' device. Tensors are contiguous and on
one device. Formats: "as_is" (any dtype), "float32", "bfloat16", "float16", "fp8_block" (a byte an
element and one for each 32), from and to float32, bfloat16 and float16.)")
      .def_static("packed_bytes", &packed_bytes, py::arg("tensors"), py::arg("format"))
      .def_static("pack", &pack, py::arg("tensors"), py::arg("slot"), py::arg("format"))
      .def_static("unpack", &unpack, py::arg("slot"), py::arg("tensors"), py::arg("format"))
      .def_static("accumulate", &accumulate, py::arg("gradients"), py::arg("mains"))
      .def_static("check_finite", &check_finite, py::arg("tensors"), py::arg("flag"),
                  py::arg("norm"))
      .def_static("write_flag", &write_flag, py::arg("flag"), py::arg("value"))
      .def_static("wait_flag", &wait_flag, py::arg("flag"), py::arg("value"), py::arg("max_polls"),
                  py::kw_only(), py::arg("abort") = py::none(), py::arg("outcome") = py::none());
}

}  // namespace pipert
