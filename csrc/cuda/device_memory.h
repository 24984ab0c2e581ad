// DeviceMemory: memory of the current device that other processes can import. Owned; movable.
#pragma once

#include <utility>

#include "cuda/cuda_api.h"

namespace pipert {

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t num_bytes) : data_(cuda::allocate(num_bytes)) {}
  DeviceMemory(DeviceMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ == nullptr) return;
    try {
      cuda::deallocate(data_);
    } catch (const CudaError&) {  // the context is gone, and the memory with it
    }
  }

  char* data() const { return static_cast<char*>(data_); }
  cuda::MemoryHandle handle() const { return cuda::export_memory(data_); }

 private:
  void* data_;
};

}  // namespace pipert
