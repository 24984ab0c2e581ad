#include "bindings/tensor_slot.h"

#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>

#include "base/error.h"
#include "device/current_stream.h"
#include "device/tensor_type.h"
#include "kernels/pack.h"

namespace pipert {
namespace {

using kernels::Element;
using kernels::Format;
using kernels::Piece;

std::vector<Piece> pieces_of(const std::vector<at::Tensor>& tensors) {
  std::vector<Piece> pieces;
  pieces.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    // Const: a tensor that is only read must not count as written.
    pieces.push_back({const_cast<void*>(tensor.const_data_ptr()),
                      static_cast<std::int64_t>(tensor.nbytes()), Element::kByte});
  }
  return pieces;
}

void check(const std::vector<at::Tensor>& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (tensor.device() != tensors.front().device())
      throw ValueError(concat("expected tensors on one device, got some on ",
                              tensors.front().device().str(), " and on ", tensor.device().str()));
    if (tensor.layout() != at::kStrided || !tensor.is_non_overlapping_and_dense() ||
        tensor.is_conj() || tensor.is_neg())
      throw ValueError(concat("expected tensors that are dense in memory, got ", type_of(tensor),
                              " with other strides"));
  }
}

// function(stream...), without one on the CPU.
template <typename Function>
void run_on(const c10::Device& device, const Function& function) {
  if (device.is_cpu()) {
    function();
  } else {
    const c10::DeviceGuard guard(device);
    function(current_stream(device));
  }
}

}  // namespace

TensorSlot::TensorSlot(const std::vector<at::Tensor>& like) {
  if (like.empty()) return;
  check(like);
  const c10::NoGradGuard no_grad;
  const kernels::SlotLayout layout(pieces_of(like), Format::kAsIs);
  memory_ = at::empty({layout.num_bytes()}, like.front().options().dtype(at::kByte));
  for (std::size_t i = 0; i < like.size(); ++i) {
    const at::Tensor part =
        memory_.narrow(0, layout.offset(i), static_cast<std::int64_t>(like[i].nbytes()));
    tensors_.push_back(
        part.view(like[i].scalar_type()).as_strided(like[i].sizes(), like[i].strides()));
  }
}

bool TensorSlot::fits(const std::vector<at::Tensor>& tensors) const {
  if (tensors.size() != tensors_.size()) return false;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& given = tensors[i];
    const at::Tensor& own = tensors_[i];
    if (given.scalar_type() != own.scalar_type() || given.device() != own.device() ||
        given.layout() != own.layout() || given.sizes() != own.sizes() ||
        given.strides() != own.strides() || given.requires_grad() || given.is_conj() ||
        given.is_neg())
      return false;
  }
  return true;
}

void TensorSlot::fill(const std::vector<at::Tensor>& tensors) {
  if (!fits(tensors)) throw ValueError("expected tensors that fit into the slot");
  if (tensors.empty()) return;
  const std::vector<Piece> pieces = pieces_of(tensors);
  run_on(memory_.device(),
         [&](auto... stream) { kernels::pack(pieces, Format::kAsIs, bytes(), stream...); });
}

std::vector<at::Tensor> TensorSlot::room() const {
  std::vector<at::Tensor> room;
  room.reserve(tensors_.size());
  for (const at::Tensor& own : tensors_)
    room.push_back(at::empty_strided(own.sizes(), own.strides(), own.options()));
  return room;
}

void TensorSlot::read(const std::vector<at::Tensor>& tensors) const {
  if (tensors.empty()) return;
  const std::vector<Piece> pieces = pieces_of(tensors);
  run_on(memory_.device(),
         [&](auto... stream) { kernels::unpack(pieces, Format::kAsIs, bytes(), stream...); });
}

}  // namespace pipert
