// Named ranges on the calling thread's row of a profiler (Nsight Systems reads NVTX). A build
// without NVTX takes cuda_nvtx_none.cpp in place of cuda_nvtx/.
#pragma once

namespace pipert {

// Whether ranges go anywhere in this build.
bool has_profiler_ranges();

// REQUIRES that the two are called by one thread in turns, as brackets.
void push_profiler_range(const char* name);
void pop_profiler_range();

// Open while it lives; nothing with a null name.
class ProfilerRange {
 public:
  explicit ProfilerRange(const char* name) : is_open_(name != nullptr) {
    if (is_open_) push_profiler_range(name);
  }
  ~ProfilerRange() {
    if (is_open_) pop_profiler_range();
  }
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;

 private:
  bool is_open_;
};

}  // namespace pipert
