#include "torch_cuda_fake.h"

#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <utility>

#include "caching_allocator_fake.h"
#include "cuda/cuda_event.h"
#include "cuda_fake.h"
#include "device/cuda/torch_stream.h"
#include "device/cuda_lane.h"

namespace pipert {

c10::Stream as_torch_stream(cuda::Stream stream, c10::DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::kCUDA, device),
                     reinterpret_cast<c10::StreamId>(stream));
}

// The fake has no graphs.
std::unique_ptr<GraphPool> make_cuda_graph_pool(const c10::Device& /*device*/) { return nullptr; }

namespace cuda_fake {
namespace {

thread_local std::array<cuda::Stream, kNumDevices> streams_of_thread{};  // null: the default one

cuda::Stream& stream_of_thread(int device) {
  return streams_of_thread.at(static_cast<std::size_t>(device));
}

int index_of(const c10::Device& device) {
  return device.has_index() ? device.index() : current_device();
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::DeviceIndex deviceCount() const noexcept override { return kNumDevices; }
  c10::Device getDevice() const override {
    return {c10::kCUDA, static_cast<c10::DeviceIndex>(current_device())};
  }
  void setDevice(c10::Device device) const override { set_current_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { setDevice(device); }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device previous = getDevice();
    setDevice(device);
    return previous;
  }
  c10::Stream getStream(c10::Device device) const override {
    const int index = index_of(device);
    return as_torch_stream(stream_of_thread(index), static_cast<c10::DeviceIndex>(index));
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return as_torch_stream(nullptr, static_cast<c10::DeviceIndex>(index_of(device)));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream previous = getStream(stream.device());
    stream_of_thread(stream.device_index()) = handle_of(stream);
    return previous;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return handle_of(stream); }
  void recordDataPtrOnStream(const c10::DataPtr& memory, const c10::Stream& stream) const override {
    adopt(memory, resolve(handle_of(stream), stream.device_index()));
  }

 private:
  static cuda::Stream handle_of(const c10::Stream& stream) {
    return reinterpret_cast<cuda::Stream>(stream.id());
  }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// For pinned memory.
class Hooks final : public at::CUDAHooksInterface {
 public:
  explicit Hooks(at::CUDAHooksArgs /*none*/) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*device*/) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kNumDevices; }
  bool isPinnedPtr(const void* memory) const override { return is_pinned(memory); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator(); }
};

}  // namespace
}  // namespace cuda_fake
}  // namespace pipert

namespace at {
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", pipert::cuda_fake::Hooks)
}

namespace pipert::cuda_fake {
namespace {

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

class DeviceScope {
 public:
  explicit DeviceScope(int device) : previous_(current_device()) { set_current_device(device); }
  ~DeviceScope() { set_current_device(previous_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_;
};

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout> /*layout*/, std::optional<at::Device> device,
                 std::optional<bool> /*pin_memory*/, std::optional<at::MemoryFormat> format) {
  const DeviceScope scope(index_of(device.value()));
  return at::detail::empty_generic(sizes, &device_allocator(), kKeys, dtype.value_or(at::kFloat),
                                   format);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout> /*layout*/,
                         std::optional<at::Device> device, std::optional<bool> /*pin_memory*/) {
  const DeviceScope scope(index_of(device.value()));
  return at::detail::empty_strided_generic(sizes, strides, &device_allocator(), kKeys,
                                           dtype.value_or(at::kFloat));
}

// On the source's stream, with torch's barriers: what the destination's stream was given before
// comes before the copy, what it is given from now on behind it.
void copy_between_devices(at::Tensor& to, const at::Tensor& from) {
  const int source = from.device().index();
  const int destination = to.device().index();
  const auto order = [](int before, int after) {
    const DeviceScope scope(before);
    const CudaEvent event;
    cuda::record(event.get(), current_stream(before));
    cuda::wait(current_stream(after), event.get());
  };
  if (source != destination) order(destination, source);
  cuda::copy_on_device(to.data_ptr(), from.const_data_ptr(), to.nbytes(), current_stream(source));
  if (source != destination) order(source, destination);
}

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  TORCH_CHECK(to.dtype() == from.dtype() && to.sizes() == from.sizes() && to.is_contiguous() &&
                  from.is_contiguous(),
              "the fake of CUDA copies contiguous tensors of equal shape and dtype");
  if (to.is_cuda() && from.is_cuda()) {
    copy_between_devices(to, from);
    return to;
  }
  const at::Tensor& on_host = to.is_cuda() ? from : to;
  const cuda::Stream stream = current_stream((to.is_cuda() ? to : from).device().index());
  if (to.is_cuda()) {
    cuda::copy_to_device(to.data_ptr(), from.const_data_ptr(), to.nbytes(), stream);
  } else {
    cuda::copy_to_host(to.data_ptr(), from.const_data_ptr(), to.nbytes(), stream);
  }
  if (non_blocking && is_pinned(on_host.const_data_ptr())) {
    adopt(on_host.storage().data_ptr(), stream);
  } else {
    cuda::synchronize(stream);
  }
  return to;
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("copy_", TORCH_FN(copy));
}

}  // namespace

cuda::Stream current_stream(int device) { return resolve(stream_of_thread(device), device); }

StreamScope::StreamScope(cuda::Stream stream)
    : device_(device_of(stream)), previous_(std::exchange(stream_of_thread(device_), stream)) {}

StreamScope::~StreamScope() { stream_of_thread(device_) = previous_; }

}  // namespace pipert::cuda_fake
