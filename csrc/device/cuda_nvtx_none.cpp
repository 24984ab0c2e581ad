// A build without NVTX takes this file in place of device/cuda_nvtx/.
#include "device/profiler_range.h"

namespace pipert {

bool has_profiler_ranges() { return false; }
void push_profiler_range(const char*) {}
void pop_profiler_range() {}

}  // namespace pipert
