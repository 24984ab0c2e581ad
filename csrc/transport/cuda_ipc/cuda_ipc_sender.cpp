#include "transport/cuda_ipc/cuda_ipc_sender.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstring>
#include <utility>

#include "base/error.h"
#include "device/accelerator_lane.h"

namespace pipert {

CudaIpcSender::CudaIpcSender(std::shared_ptr<Segment> ring, std::unique_ptr<Pusher> pusher,
                             const c10::Device& device, std::chrono::microseconds spin)
    : device_(device), ring_(std::move(ring), spin), pusher_(std::move(pusher)) {
  for (std::uint32_t i = 0; i < pusher_->num_streams(); ++i) {
    pushes_.push_back(make_accelerator_lane(
        c10::cuda::getStreamFromExternal(pusher_->stream(i), device.index()).unwrap()));
  }
}

CudaIpcSender::~CudaIpcSender() {
  const c10::cuda::CUDAGuard guard(device_);
  ring_.abort();  // before the courier is joined
  pushes_.clear();
  pusher_.reset();
}

void CudaIpcSender::begin(const ChannelPass& /*pass*/) {
  if (!courier_.is_busy()) ring_.begin_pass();
}

void CudaIpcSender::send(int /*sequence*/, int slot, Message message, Lane& lane) {
  const auto current = lane.make_current();
  const c10::cuda::CUDAGuard guard(device_);
  const cuda::Stream producer = c10::cuda::getCurrentCUDAStream(device_.index()).stream();
  const FrameWriter frame(std::move(message));
  const Announcement announcement = announce(frame, slot, producer);
  sent_from_[slot] = ++num_sent_;
  const std::size_t size = announcement.message_bytes();
  const auto fill = [&](char* destination, const RingWriter::Progress&) {
    write(destination, announcement, frame, producer);
  };
  if (!courier_.is_busy() && ring_.try_write(size, fill)) return;
  Courier::Parcel parcel{std::make_unique_for_overwrite<char[]>(size), size};
  write(parcel.bytes.get(), announcement, frame, producer);
  courier_.bring(std::move(parcel));
}

Announcement CudaIpcSender::announce(const FrameWriter& frame, int slot, cuda::Stream producer) {
  Announcement announcement;
  announcement.slot = static_cast<std::uint32_t>(slot);
  announcement.frame_bytes = static_cast<std::uint64_t>(frame.num_bytes());
  if (frame.beside().empty()) return announcement;
  check_devices(frame);
  std::vector<Pusher::Part> parts;
  for (const at::Tensor& tensor : frame.beside()) {
    parts.push_back({tensor.const_data_ptr(), part_bytes(tensor)});
    announcement.payload_bytes = align_part(announcement.payload_bytes) + parts.back().num_bytes;
  }
  if (const auto pushed = pusher_->push(announcement.slot, parts, producer)) {
    announcement.way = PayloadWay::kPushed;
    announcement.pushed = *pushed;
    // Their memory isn't used again before the push has read it.
    for (const at::Tensor& tensor : frame.beside()) pushes_[pushed->stream]->adopt(tensor);
  } else {
    announcement.way = PayloadWay::kBehindFrame;
  }
  return announcement;
}

void CudaIpcSender::check_devices(const FrameWriter& frame) const {
  for (const at::Tensor& tensor : frame.beside()) {
    if (tensor.device() == device_) continue;
    throw ValueError(concat("a stage returned a tensor on ", tensor.device().str(),
                            ", expected one on its rank's device, ", device_.str(),
                            ", or on the CPU"));
  }
}

void CudaIpcSender::write(char* destination, const Announcement& announcement,
                          const FrameWriter& frame, cuda::Stream producer) {
  std::memcpy(destination, &announcement, sizeof(announcement));
  frame.write(destination + sizeof(announcement));
  if (announcement.way != PayloadWay::kBehindFrame) return;
  std::size_t offset = announcement.payload_offset();
  const std::size_t start = offset;
  for (const at::Tensor& tensor : frame.beside()) {
    offset = start + align_part(offset - start);
    cuda::copy_to_host(destination + offset, tensor.const_data_ptr(), part_bytes(tensor), producer);
    offset += part_bytes(tensor);
  }
  cuda::synchronize(producer);
}

bool CudaIpcSender::release(int /*sequence*/, int slot) {
  return ring_.wait_until_taken(sent_from_[slot]);
}

void CudaIpcSender::abort() noexcept {
  ring_.abort();
  pusher_->abort();
}

}  // namespace pipert
