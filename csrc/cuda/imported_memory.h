// ImportedMemory: another process's DeviceMemory, mapped into this one. Owned; movable.
#pragma once

#include <utility>

#include "cuda/cuda_api.h"

namespace pipert {

class ImportedMemory {
 public:
  explicit ImportedMemory(const cuda::MemoryHandle& handle) : data_(cuda::import_memory(handle)) {}
  ImportedMemory(ImportedMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  ImportedMemory& operator=(ImportedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~ImportedMemory() {
    if (data_ == nullptr) return;
    try {
      cuda::close_imported(data_);
    } catch (const CudaError&) {  // the context is gone, and the mapping with it
    }
  }

  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_;
};

}  // namespace pipert
