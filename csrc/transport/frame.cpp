#include "transport/frame.h"

#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/wire.h"
#include "device/tensor_type.h"

namespace pipert {
namespace {

constexpr std::uint32_t kMagic = 0x70697031;  // "pip1"
constexpr std::int64_t kAlignment = 64;
constexpr std::uint16_t kMaxDimensions = 64;                // torch's own limit
constexpr std::size_t kPartBytes = std::size_t{256} << 10;  // that are written between two reports
constexpr std::int64_t kMaxElements = std::int64_t{1} << 48;

struct Header {
  std::uint32_t magic = kMagic;
  std::uint32_t num_tensors = 0;
  std::int64_t num_bytes = 0;  // of the whole frame
  std::int64_t epoch = 0;
  double weight = 0.0;
  std::int64_t batch_size = 0;
  std::int32_t stage = 0;
  std::int32_t microbatch = 0;
  std::uint8_t kind = 0;
  std::uint8_t has_structure = 0;
  std::uint8_t training = 0;
  std::uint8_t reserved = 0;
  std::uint32_t description_bytes = 0;
  std::int64_t step = 0;
};

enum TensorFlags : std::uint8_t { kDefined = 1, kRequiresGrad = 2, kBeside = 4 };

std::int64_t align(std::int64_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

// Elements between the first and the last one, both included. ValueError for more than there can
// be.
std::int64_t extent(at::IntArrayRef sizes, at::IntArrayRef strides) {
  std::int64_t last = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return 0;
    std::int64_t step = 0;
    if (__builtin_mul_overflow(sizes[i] - 1, strides[i], &step) ||
        __builtin_add_overflow(last, step, &last) || last >= kMaxElements) {
      throw ValueError("a frame holds a tensor larger than any memory");
    }
  }
  return last + 1;
}

// Whether the memory between the first and the last element holds nothing but elements.
bool can_keep_strides(const at::Tensor& tensor) {
  return extent(tensor.sizes(), tensor.strides()) <= tensor.numel();
}

// Whether there is memory with its elements: not for a wrapper of other tensors, or a fake one.
bool has_elements(const at::Tensor& tensor) {
  if (!tensor.has_storage()) return false;
  return !tensor.device().is_cpu() || tensor.numel() == 0 || tensor.storage().data() != nullptr;
}

// Throws ValueError for a tensor that is more, or less, than its elements, sizes and strides.
void check_dense(const at::Tensor& tensor, const MessageKey& key) {
  const bool is_strided = tensor.layout() == at::kStrided && !tensor.is_nested();
  if (is_strided && !tensor.is_quantized() && has_elements(tensor)) return;
  throw ValueError(concat(
      "the ", to_string(key), " holds a tensor ", type_of(tensor), " (layout ", tensor.layout(),
      tensor.is_quantized() ? ", quantized" : "",
      "): expected dense ones with elements of their own, which alone can leave the process"));
}

struct TensorDescription {
  std::uint8_t flags = 0;
  at::ScalarType dtype = at::kFloat;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;
  std::int64_t num_bytes() const {
    return extent(sizes, strides) * static_cast<std::int64_t>(c10::elementSize(dtype));
  }
};

TensorDescription take_description(std::string_view& in) {
  TensorDescription description;
  description.flags = take<std::uint8_t>(in);
  if ((description.flags & kDefined) == 0) return description;
  const auto dtype = take<std::int8_t>(in);
  if (dtype < 0 || dtype >= static_cast<std::int8_t>(at::ScalarType::Undefined)) {
    throw ValueError(concat("a frame names a dtype that this torch doesn't know: ", int{dtype}));
  }
  description.dtype = static_cast<at::ScalarType>(dtype);
  const auto dimensions = take<std::uint16_t>(in);
  if (dimensions > kMaxDimensions)
    throw ValueError(concat("a frame holds a tensor of ", dimensions, " dimensions"));
  for (int i = 0; i < dimensions; ++i) description.sizes.push_back(take<std::int64_t>(in));
  for (int i = 0; i < dimensions; ++i) description.strides.push_back(take<std::int64_t>(in));
  for (int i = 0; i < dimensions; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (description.sizes[at] < 0 || description.strides[at] < 0)
      throw ValueError("a frame holds a negative size");
  }
  return description;
}

Header read_header(const char* start, std::int64_t num_bytes) {
  if (num_bytes < static_cast<std::int64_t>(sizeof(Header)))
    throw ValueError("a frame is shorter than its header");
  Header header;
  std::memcpy(&header, start, sizeof(Header));
  if (header.magic != kMagic) throw ValueError("expected a frame, got other bytes");
  if (header.kind > static_cast<std::uint8_t>(MessageKind::kGradient)) {
    throw ValueError(concat("a frame holds a message of no known kind: ", int{header.kind}));
  }
  return header;
}

// Who unpacks the message takes one tensor for each that its structure names.
void check_structure(const Message& message) {
  const bool is_gradient = message.key.kind == MessageKind::kGradient;
  if (message.structure == nullptr && is_gradient) return;
  const std::size_t named = message.structure == nullptr ? 1 : num_tensors(*message.structure);
  if (named != message.tensors.size()) {
    throw ValueError(
        concat("a frame's structure names ", named, " tensors, it holds ", message.tensors.size()));
  }
}

}  // namespace

const std::int64_t kFrameHeaderBytes = sizeof(Header);

FrameWriter::FrameWriter(Message message)
    : message_(std::move(message)), offsets_(message_.tensors.size(), -1) {
  for (std::size_t i = 0; i < message_.tensors.size(); ++i) {
    at::Tensor& tensor = message_.tensors[i];
    const bool requires_grad = i < message_.requires_grad.size() && message_.requires_grad[i];
    const bool is_beside = tensor.defined() && !tensor.device().is_cpu();
    if (tensor.defined()) {
      if (tensor._is_zerotensor()) tensor = tensor.clone();  // torch's own, which has no elements
      check_dense(tensor, message_.key);
      tensor = tensor.resolve_neg().resolve_conj();
      if (!can_keep_strides(tensor))
        tensor = tensor.clone();  // dense, its dimensions in the same order
    }
    put(description_,
        static_cast<std::uint8_t>((tensor.defined() ? kDefined : 0) |
                                  (requires_grad ? kRequiresGrad : 0) | (is_beside ? kBeside : 0)));
    if (!tensor.defined()) continue;
    put(description_, static_cast<std::int8_t>(tensor.scalar_type()));
    put(description_, static_cast<std::uint16_t>(tensor.dim()));
    for (const std::int64_t size : tensor.sizes()) put(description_, size);
    for (const std::int64_t stride : tensor.strides()) put(description_, stride);
    if (is_beside) beside_.push_back(tensor);
  }
  if (message_.structure != nullptr) encode(*message_.structure, description_);
  num_bytes_ = align(kFrameHeaderBytes + static_cast<std::int64_t>(description_.size()));
  for (std::size_t i = 0; i < message_.tensors.size(); ++i) {
    const at::Tensor& tensor = message_.tensors[i];
    if (!tensor.defined() || !tensor.device().is_cpu()) continue;
    offsets_[i] = num_bytes_;
    num_bytes_ = align(num_bytes_ + extent(tensor.sizes(), tensor.strides()) *
                                        static_cast<std::int64_t>(tensor.element_size()));
  }
}

void FrameWriter::write(char* destination,
                        const std::function<void(std::size_t)>& on_progress) const {
  Header header;
  header.num_tensors = static_cast<std::uint32_t>(message_.tensors.size());
  header.num_bytes = num_bytes_;
  header.epoch = message_.epoch;
  header.step = message_.step;
  header.weight = message_.weight;
  header.batch_size = message_.batch_size;
  header.stage = message_.key.stage;
  header.microbatch = message_.key.microbatch;
  header.kind = static_cast<std::uint8_t>(message_.key.kind);
  header.has_structure = message_.structure != nullptr ? 1 : 0;
  header.training = message_.training ? 1 : 0;
  header.description_bytes = static_cast<std::uint32_t>(description_.size());
  std::memcpy(destination, &header, sizeof(Header));
  std::memcpy(destination + sizeof(Header), description_.data(), description_.size());
  for (std::size_t i = 0; i < message_.tensors.size(); ++i) {
    if (offsets_[i] < 0) continue;
    const at::Tensor& tensor = message_.tensors[i];
    const auto size =
        static_cast<std::size_t>(extent(tensor.sizes(), tensor.strides())) * tensor.element_size();
    const auto* source = static_cast<const char*>(tensor.const_data_ptr());
    const auto offset = static_cast<std::size_t>(offsets_[i]);
    for (std::size_t done = 0; done < size;) {
      const std::size_t part = on_progress ? std::min(size - done, kPartBytes) : size;
      std::memcpy(destination + offset + done, source + done, part);
      done += part;
      if (on_progress && part == kPartBytes) on_progress(offset + done);
    }
  }
}

std::int64_t frame_num_bytes(const char* start, std::int64_t num_bytes) {
  const Header header = read_header(start, num_bytes);
  if (header.num_bytes < kFrameHeaderBytes)
    throw ValueError("a frame claims to be shorter than its header");
  return header.num_bytes;
}

Message read_frame(const at::Tensor& frame, const c10::Device& device,
                   std::vector<std::size_t>& beside) {
  const auto* bytes = static_cast<const char*>(frame.const_data_ptr());
  const Header header = read_header(bytes, frame.numel());
  if (header.description_bytes > frame.numel() - kFrameHeaderBytes)
    throw ValueError("a frame ends early");
  std::string_view in(bytes + kFrameHeaderBytes, header.description_bytes);
  Message message;
  message.key = {static_cast<MessageKind>(header.kind), header.stage, header.microbatch};
  message.epoch = header.epoch;
  message.step = header.step;
  message.training = header.training != 0;
  message.weight = header.weight;
  message.batch_size = header.batch_size;
  std::int64_t offset = align(kFrameHeaderBytes + header.description_bytes);
  for (std::uint32_t i = 0; i < header.num_tensors; ++i) {
    const TensorDescription description = take_description(in);
    message.requires_grad.push_back((description.flags & kRequiresGrad) != 0);
    const auto options = at::TensorOptions().dtype(description.dtype);
    if ((description.flags & kDefined) == 0) {
      message.tensors.emplace_back();
    } else if ((description.flags & kBeside) != 0) {
      beside.push_back(i);
      message.tensors.push_back(
          at::empty_strided(description.sizes, description.strides, options.device(device)));
    } else {
      const std::int64_t size = description.num_bytes();
      if (size < 0 || size > frame.numel() - offset)
        throw ValueError("a frame ends within a tensor");
      // The tensor keeps the frame's memory; const_cast because from_blob has no other way in.
      message.tensors.push_back(at::from_blob(
          const_cast<char*>(bytes) + offset, description.sizes, description.strides,
          [frame](void*) {}, options));
      offset = align(offset + size);
    }
  }
  if (header.has_structure != 0)
    message.structure = std::make_shared<const Structure>(decode_structure(in));
  check_structure(message);
  return message;
}

}  // namespace pipert
