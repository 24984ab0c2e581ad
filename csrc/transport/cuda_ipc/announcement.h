// Announcement: what stands before a frame in the ring of a cuda_ipc channel: where the bytes of
// the tensors beside it are.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>

#include "ipc/push_board.h"

namespace pipert {

constexpr std::uint32_t kAnnouncementMagic = 0x70697063;
constexpr std::size_t kHostAlignment = 64;  // of frames, and of bytes behind them

enum class PayloadWay : std::uint32_t { kNone, kPushed, kBehindFrame };

struct alignas(kHostAlignment) Announcement {
  std::uint32_t magic = kAnnouncementMagic;
  PayloadWay way = PayloadWay::kNone;
  Pushed pushed;           // kPushed alone
  std::uint32_t slot = 0;  // that it was to be pushed into
  std::uint64_t frame_bytes = 0;
  std::uint64_t payload_bytes = 0;  // parts lie as they do in a slot

  std::size_t payload_offset() const {
    return (sizeof(Announcement) + frame_bytes + kHostAlignment - 1) / kHostAlignment *
           kHostAlignment;
  }
  std::size_t message_bytes() const {
    return payload_offset() + (way == PayloadWay::kBehindFrame ? payload_bytes : 0);
  }
};

// From the first to the last element, as frames keep strides.
inline std::size_t part_bytes(const at::Tensor& tensor) {
  return at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.element_size());
}

}  // namespace pipert
