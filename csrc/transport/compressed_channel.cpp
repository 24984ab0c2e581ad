#include "transport/compressed_channel.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>

#include <utility>
#include <vector>

#include "base/error.h"
#include "device/current_stream.h"
#include "kernels/pack.h"

namespace pipert {
namespace {

using kernels::Element;
using kernels::Format;
using kernels::Piece;

// The dimensions that stand before a packed tensor's own in the tensor that tells its sizes.
constexpr std::int64_t kLeadingDimensions = 2;

bool can_pack(const at::Tensor& tensor) {
  return tensor.defined() && tensor.scalar_type() == at::kFloat &&
         tensor.layout() == at::kStrided && tensor.numel() > 0 &&
         (tensor.is_cpu() || tensor.is_cuda());
}

at::Tensor sizes_only(const at::Tensor& like, at::IntArrayRef sizes) {
  return at::empty(sizes, like.defined() ? like.options() : at::TensorOptions(at::kFloat));
}

Piece piece_of(const at::Tensor& tensor) {
  return {tensor.data_ptr(), tensor.numel(), Element::kFloat32};
}

at::Tensor packed(const at::Tensor& tensor, Format format) {
  const at::Tensor dense = tensor.contiguous();
  const std::vector<Piece> pieces{piece_of(dense)};
  const std::int64_t num_bytes = kernels::SlotLayout(pieces, format).num_bytes();
  const at::Tensor slot = at::empty({num_bytes}, tensor.options().dtype(at::kByte));
  auto* bytes = static_cast<std::byte*>(slot.data_ptr());
  if (tensor.is_cpu()) {
    kernels::pack(pieces, format, bytes);
  } else {
    const c10::DeviceGuard guard(tensor.device());
    kernels::pack(pieces, format, bytes, current_stream(tensor.device()));
  }
  return slot;
}

at::Tensor unpacked(const at::Tensor& slot, at::IntArrayRef sizes, Format format) {
  const at::Tensor tensor = at::empty(sizes, slot.options().dtype(at::kFloat));
  const std::vector<Piece> pieces{piece_of(tensor)};
  const std::int64_t num_bytes = kernels::SlotLayout(pieces, format).num_bytes();
  if (slot.scalar_type() != at::kByte || slot.numel() != num_bytes)
    throw ValueError(concat("expected ", num_bytes, " bytes of a compressed tensor, got ",
                            slot.numel(), " elements of ", c10::toString(slot.scalar_type())));
  const auto* bytes = static_cast<const std::byte*>(slot.data_ptr());
  if (slot.is_cpu()) {
    kernels::unpack(pieces, format, bytes);
  } else {
    const c10::DeviceGuard guard(slot.device());
    kernels::unpack(pieces, format, bytes, current_stream(slot.device()));
  }
  return tensor;
}

// See Note [A compressed message].
void compress_message(Message& message, Format format) {
  const std::size_t count = message.tensors.size();
  for (std::size_t i = 0; i < count; ++i) {
    const at::Tensor tensor = message.tensors[i];
    std::vector<std::int64_t> sizes{0};
    if (can_pack(tensor)) {
      sizes.push_back(1);
      sizes.insert(sizes.end(), tensor.sizes().begin(), tensor.sizes().end());
      message.tensors[i] = packed(tensor, format);
    }
    message.tensors.push_back(sizes_only(tensor, sizes));
  }
  if (!message.requires_grad.empty()) message.requires_grad.resize(2 * count, false);
  if (message.key.kind == MessageKind::kGradient && message.structure == nullptr) return;
  Structure whole;
  whole.kind = Structure::Kind::kTuple;
  whole.children.assign(1 + count, Structure());
  if (message.structure != nullptr) whole.children.front() = *message.structure;
  message.structure = std::make_shared<const Structure>(std::move(whole));
}

void restore_structure(Message& message) {
  if (message.structure == nullptr) return;
  const std::vector<Structure>& children = message.structure->children;
  if (children.empty()) throw ValueError("expected a compressed message, got one that isn't");
  if (children.front().kind == Structure::Kind::kTensor)
    message.structure = nullptr;
  else
    message.structure = std::make_shared<const Structure>(children.front());
}

void decompress_message(Message& message, Format format) {
  if (message.tensors.size() % 2 != 0)
    throw ValueError("expected a compressed message, got one that isn't");
  const std::size_t count = message.tensors.size() / 2;
  for (std::size_t i = 0; i < count; ++i) {
    const at::Tensor& told = message.tensors[count + i];
    if (!told.defined() || told.dim() < kLeadingDimensions) continue;
    message.tensors[i] =
        unpacked(message.tensors[i], told.sizes().slice(kLeadingDimensions), format);
  }
  message.tensors.resize(count);
  if (!message.requires_grad.empty()) message.requires_grad.resize(count);
  restore_structure(message);
}

class CompressedSender final : public Sender {
 public:
  CompressedSender(std::unique_ptr<Sender> inner, Format format)
      : inner_(std::move(inner)), format_(format) {}

  void begin(const ChannelPass& pass) override { inner_->begin(pass); }
  void send(int sequence, int slot, Message message, Lane& lane) override {
    {
      const auto current = lane.make_current();
      const c10::AutoGradMode no_grad(false);
      compress_message(message, format_);
    }
    inner_->send(sequence, slot, std::move(message), lane);
  }
  bool release(int sequence, int slot) override { return inner_->release(sequence, slot); }
  void abort() noexcept override { inner_->abort(); }
  bool reset() noexcept override { return inner_->reset(); }
  std::string_view kind() const override { return inner_->kind(); }

 private:
  std::unique_ptr<Sender> inner_;
  Format format_;
};

class CompressedReceiver final : public Receiver {
 public:
  CompressedReceiver(std::unique_ptr<Receiver> inner, Format format)
      : inner_(std::move(inner)), format_(format) {}

  void begin(const ChannelPass& pass) override { inner_->begin(pass); }
  void post(int sequence, int slot) override { inner_->post(sequence, slot); }
  std::optional<Message> take(int sequence, int slot, Lane& lane) override {
    auto message = inner_->take(sequence, slot, lane);
    if (!message.has_value()) return message;
    const auto current = lane.make_current();
    const c10::AutoGradMode no_grad(false);
    // The lane reads what a rank on the same device may get back at once: it is let go of here.
    if (lane.is_asynchronous()) {
      for (const at::Tensor& tensor : message->tensors) {
        if (tensor.defined() && !tensor.device().is_cpu()) lane.adopt(tensor);
      }
    }
    decompress_message(*message, format_);
    return message;
  }
  void abort() noexcept override { inner_->abort(); }
  bool reset() noexcept override { return inner_->reset(); }
  std::string_view kind() const override { return inner_->kind(); }

 private:
  std::unique_ptr<Receiver> inner_;
  Format format_;
};

}  // namespace

std::unique_ptr<Sender> compress(std::unique_ptr<Sender> inner, kernels::Format format) {
  return std::make_unique<CompressedSender>(std::move(inner), format);
}

std::unique_ptr<Receiver> decompress(std::unique_ptr<Receiver> inner, kernels::Format format) {
  return std::make_unique<CompressedReceiver>(std::move(inner), format);
}

}  // namespace pipert
