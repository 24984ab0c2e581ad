// CachingAllocatorFake: memory of the fake CUDA's devices, and pinned memory of the host, used
// again by the rules of torch's own allocators.
//
// On a device a block belongs to the stream that was current when it was allocated. Once it is
// freed, by whatever thread, the next allocation of its size on that stream has it at once,
// poisoned in the stream's order; unless other streams adopted it: then not before they have passed
// what they were given until the free. So a tensor that dies while a stream that never adopted it
// still reads it is a wrong result. Pinned memory belongs to no stream, and waits for all that used
// it.
//
// Any thread. Never gives memory back.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

#include <cstddef>

#include "cuda/cuda_api.h"

namespace pipert::cuda_fake {

// On the device and the stream that are current for the calling thread.
c10::Allocator& device_allocator();
c10::Allocator& pinned_allocator();
bool is_pinned(const void* memory);

// The stream uses a block of either until it comes to this point, or beyond (the allocator looks
// when the block is freed). Nothing for memory from elsewhere.
void adopt(const c10::DataPtr& memory, cuda::Stream stream);

}  // namespace pipert::cuda_fake
