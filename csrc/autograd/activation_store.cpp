#include "autograd/activation_store.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <typeinfo>
#include <utility>

#include "device/memory_meter.h"

namespace pipert {
namespace {

// Whether the tensor is no more than a view of its storage: not sparse, nested or quantized, no
// Python subclass with a life of its own, not under functorch.
bool is_plain(const at::Tensor& tensor) {
  const at::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  return typeid(impl) == typeid(at::TensorImpl) && tensor.layout() == at::kStrided &&
         tensor.has_storage() && tensor.storage().data() != nullptr && !tensor.is_quantized() &&
         !impl.has_symbolic_sizes_strides() && !impl.key_set().has(c10::DispatchKey::Python);
}

at::TensorOptions bytes_on(const c10::Device& device) {
  return at::TensorOptions().dtype(at::kByte).device(device).requires_grad(false);
}

at::Tensor make_tensor(const c10::Storage& storage, c10::DispatchKeySet keys,
                       caffe2::TypeMeta dtype) {
  return at::detail::make_tensor<at::TensorImpl>(at::TensorImpl::VIEW, c10::Storage(storage), keys,
                                                 dtype);
}

// All of the storage.
at::Tensor bytes_of(const c10::Storage& storage, const c10::Device& device) {
  const at::Tensor like = at::empty({0}, bytes_on(device));
  at::Tensor bytes = make_tensor(storage, like.key_set(), like.dtype());
  bytes.unsafeGetTensorImpl()->set_sizes_contiguous(static_cast<std::int64_t>(storage.nbytes()));
  return bytes;
}

}  // namespace

ActivationStore::ActivationStore(std::string owner)
    : owner_(std::make_shared<const std::string>(std::move(owner))) {}

std::shared_ptr<SavedTensor> ActivationStore::pack(const at::Tensor& tensor) {
  std::shared_ptr<Memory> memory;
  if (is_plain(tensor)) {
    std::weak_ptr<Memory>& known = packed_[tensor.storage().unsafeGetStorageImpl()];
    memory = known.lock();
    if (memory == nullptr) {
      memory = std::make_shared<Memory>(Memory{tensor.storage(), tensor.device(), {}});
      known = memory;
    }
  }
  return std::make_shared<SavedTensor>(tensor, owner_, std::move(memory));
}

void ActivationStore::offload(Lane& lane) {
  const c10::AutoGradMode no_grad(false);
  for (const auto& [address, known] : std::exchange(packed_, {})) {
    const std::shared_ptr<Memory> memory = known.lock();
    if (memory == nullptr || memory->storage.use_count() > 1) continue;
    const bool is_elsewhere = memory->device.is_cpu() == lane.is_asynchronous();
    const auto num_bytes = static_cast<std::int64_t>(memory->storage.nbytes());
    if (is_elsewhere || num_bytes == 0) continue;
    const at::Tensor device = bytes_of(memory->storage, memory->device);
    memory->host =
        at::empty({num_bytes}, bytes_on(c10::kCPU).pinned_memory(lane.is_asynchronous()));
    MemoryMeter::forget(memory->host);  // on the CPU it would count as much as what it frees
    memory->host.copy_(device, /*non_blocking=*/true);
    lane.adopt(device);
    memory->storage = {};
    on_host_.push_back(memory);
  }
}

void ActivationStore::reload(Lane& lane, Lane& compute) {
  const c10::AutoGradMode no_grad(false);
  for (const auto& moved : std::exchange(on_host_, {})) {
    const std::shared_ptr<Memory> memory = moved.lock();
    if (memory == nullptr) continue;
    const at::Tensor device = at::empty(memory->host.sizes(), bytes_on(memory->device));
    device.copy_(memory->host, /*non_blocking=*/true);
    if (lane.is_asynchronous()) compute.adopt(device);
    memory->storage = device.storage();
    memory->host.reset();
  }
}

SavedTensor::SavedTensor(const at::Tensor& tensor, std::shared_ptr<const std::string> owner,
                         std::shared_ptr<ActivationStore::Memory> memory)
    : owner_(std::move(owner)),
      memory_(std::move(memory)),
      counter_(tensor.unsafeGetTensorImpl()->version_counter()) {
  if (counter_.enabled()) version_ = counter_.current_version();
  if (memory_ == nullptr) {
    kept_ = tensor;
    return;
  }
  keys_ = tensor.key_set();
  dtype_ = tensor.dtype();
  sizes_ = tensor.sizes().vec();
  strides_ = tensor.strides().vec();
  offset_ = tensor.storage_offset();
}

at::Tensor SavedTensor::unpack() const {
  check_version();
  if (memory_ == nullptr) return kept_;
  TORCH_CHECK(memory_->storage, "a tensor that was saved by ", *owner_,
              " is needed while its activations are on the host");
  at::Tensor tensor = make_tensor(memory_->storage, keys_, dtype_);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes_, strides_, offset_);
  return tensor;
}

void SavedTensor::check_version() const {
  if (!counter_.enabled() || counter_.current_version() == version_) return;
  TORCH_CHECK(false,
              "one of the variables needed for gradient computation has been modified by an "
              "inplace operation: a tensor of shape ",
              memory_ == nullptr ? kept_.sizes() : at::IntArrayRef(sizes_), " that was saved by ",
              *owner_, " is at version ", counter_.current_version(), "; expected version ",
              version_, " instead");
}

}  // namespace pipert
