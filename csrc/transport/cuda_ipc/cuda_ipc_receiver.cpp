#include "transport/cuda_ipc/cuda_ipc_receiver.h"

#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstring>
#include <utility>

#include "base/error.h"
#include "transport/frame.h"

namespace pipert {

CudaIpcReceiver::CudaIpcReceiver(std::shared_ptr<Segment> ring, std::unique_ptr<Landing> landing,
                                 const c10::Device& device, std::chrono::microseconds spin)
    : device_(device), ring_(std::move(ring), spin), landing_(std::move(landing)) {}

CudaIpcReceiver::~CudaIpcReceiver() {
  const c10::cuda::CUDAGuard guard(device_);
  ring_.abort();
  landing_.reset();
}

void CudaIpcReceiver::begin(const ChannelPass& /*pass*/) {
  next_sequence_ = 0;
  early_.clear();
  buffers_.begin_pass();
}

std::optional<Message> CudaIpcReceiver::take(int sequence, int /*slot*/, Lane& lane) {
  if (auto early = early_.extract(sequence)) return std::move(early.mapped());
  const auto current = lane.make_current();  // the tensors are allocated for this lane
  const c10::cuda::CUDAGuard guard(device_);
  const cuda::Stream stream = c10::cuda::getCurrentCUDAStream(device_.index()).stream();
  while (true) {  // messages that are read later than they were sent are put aside
    std::optional<Message> message = receive(stream);
    const int arrived = next_sequence_++;
    if (!message.has_value() || arrived == sequence) return message;
    early_[arrived] = std::move(*message);
  }
}

std::optional<Message> CudaIpcReceiver::receive(cuda::Stream stream) {
  const at::Tensor bytes = next();
  if (!bytes.defined()) return std::nullopt;
  Announcement announcement;
  const auto size = static_cast<std::size_t>(bytes.numel());
  if (size >= sizeof(announcement))
    std::memcpy(&announcement, bytes.const_data_ptr(), sizeof(announcement));
  if (size < sizeof(announcement) || announcement.magic != kAnnouncementMagic ||
      announcement.message_bytes() != size) {
    throw ValueError(concat("expected an announcement and a frame, got ", size, " other bytes"));
  }
  std::vector<std::size_t> beside;
  const at::Tensor frame = bytes.narrow(0, static_cast<std::int64_t>(sizeof(announcement)),
                                        static_cast<std::int64_t>(announcement.frame_bytes));
  Message message = read_frame(frame, device_, beside);
  std::vector<at::Tensor> tensors;
  for (const std::size_t index : beside) tensors.push_back(message.tensors[index]);
  if (!tensors.empty() && !fill(tensors, announcement, bytes, stream)) {
    if (is_aborted_.load()) return std::nullopt;
    throw ProcessGone("connection closed: the process of the other end is gone");
  }
  return message;
}

at::Tensor CudaIpcReceiver::next() {
  const auto size = ring_.wait_for_message();
  if (!size.has_value()) return {};
  const auto num_bytes = static_cast<std::int64_t>(*size);
  if (std::shared_ptr<char> lent = ring_.borrow()) {
    char* const data = lent.get();
    return at::from_blob(
        data, {num_bytes}, [lent = std::move(lent)](void*) {},
        at::TensorOptions().dtype(at::kByte));
  }
  at::Tensor bytes = buffers_.take(num_bytes);
  if (!ring_.read(static_cast<char*>(bytes.mutable_data_ptr()))) return {};
  return bytes;
}

bool CudaIpcReceiver::fill(const std::vector<at::Tensor>& tensors, const Announcement& announcement,
                           const at::Tensor& bytes, cuda::Stream stream) {
  std::vector<Landing::Part> parts;
  std::uint64_t num_bytes = 0;
  for (const at::Tensor& tensor : tensors) {
    parts.push_back({tensor.mutable_data_ptr(), part_bytes(tensor)});
    num_bytes = align_part(num_bytes) + parts.back().num_bytes;
  }
  if (num_bytes != announcement.payload_bytes) {
    throw ValueError(concat("a frame describes ", num_bytes, " bytes of tensors on a device, got ",
                            announcement.payload_bytes));
  }
  switch (announcement.way) {
    case PayloadWay::kPushed:
      return landing_->take(announcement.pushed, parts, stream);
    case PayloadWay::kBehindFrame:
      copy_behind_frame(parts, announcement, bytes, stream);
      return true;
    case PayloadWay::kNone:
      break;
  }
  throw ValueError("a frame's tensors are on a device, and came neither behind it nor pushed");
}

void CudaIpcReceiver::copy_behind_frame(const std::vector<Landing::Part>& parts,
                                        const Announcement& announcement, const at::Tensor& bytes,
                                        cuda::Stream stream) {
  const char* const payload =
      static_cast<const char*>(bytes.const_data_ptr()) + announcement.payload_offset();
  std::size_t offset = 0;
  for (const Landing::Part& part : parts) {
    offset = align_part(offset);
    cuda::copy_to_device(part.data, payload + offset, part.num_bytes, stream);
    offset += part.num_bytes;
  }
  cuda::synchronize(stream);  // the ring's memory goes
  try {
    landing_->grow(announcement.slot + 1, announcement.payload_bytes);
  } catch (const CudaError& error) {  // no memory for larger slots: it goes on like this
    TORCH_WARN_ONCE("pipert: messages go by way of the host, which is slow: ", error.what());
  }
}

void CudaIpcReceiver::abort() noexcept {
  is_aborted_.store(true);
  ring_.abort();
  landing_->abort();
}

}  // namespace pipert
