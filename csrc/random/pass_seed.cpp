#include "random/pass_seed.h"

#include <ATen/CPUGeneratorImpl.h>

namespace pipert {

std::uint64_t PassSeed::get() {
  const std::lock_guard lock(mutex_);
  if (!seed_.has_value()) {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard generator_lock(generator.mutex());
    seed_ = at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
  }
  return *seed_;
}

}  // namespace pipert
