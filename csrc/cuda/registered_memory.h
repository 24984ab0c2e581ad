// RegisteredMemory: host memory that streams may write and wait for, while this lives. Doesn't own
// the memory.
#pragma once

#include "cuda/cuda_api.h"

namespace pipert {

class RegisteredMemory {
 public:
  RegisteredMemory(void* memory, std::size_t num_bytes)
      : host_(static_cast<char*>(memory)),
        device_(static_cast<char*>(cuda::register_host(memory, num_bytes))) {}
  ~RegisteredMemory() {
    try {
      cuda::unregister_host(host_);
    } catch (const CudaError&) {  // the context is gone
    }
  }
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  // The streams' address of something that lies there.
  template <typename Word>
  std::uint32_t* on_device(Word& word) const {
    static_assert(sizeof(Word) == sizeof(std::uint32_t));
    return reinterpret_cast<std::uint32_t*>(device_ + (reinterpret_cast<char*>(&word) - host_));
  }

 private:
  char* host_;
  char* device_;
};

}  // namespace pipert
