// In place of cuda_ipc/ where CUDA is not linked.
#include "base/error.h"
#include "transport/cuda_ipc_channel.h"
#include "transport/push_probe.h"

namespace pipert {

bool has_cuda_ipc() { return false; }

std::shared_ptr<CudaIpcEdge> make_cuda_ipc_source(const c10::Device& /*device*/) {
  throw ValueError("transport 'cuda_ipc' needs a pipert that was built with CUDA");
}

std::shared_ptr<CudaIpcEdge> open_cuda_ipc_destination(const std::string& /*name*/,
                                                       const c10::Device& device) {
  return make_cuda_ipc_source(device);
}

std::shared_ptr<PushProbe> make_push_probe(std::uint32_t /*num_streams*/) {
  throw ValueError("a probe of pushes needs a pipert that was built with CUDA");
}

std::shared_ptr<PushProbe> open_push_probe(const std::string& /*name*/) {
  return make_push_probe(1);
}

}  // namespace pipert
