#include "random/random_state.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <mutex>
#include <utility>

#include "random/rank_generator.h"

namespace pipert {
namespace {

at::Tensor state_of(const c10::Device& device) {
  at::Generator generator = at::globalContext().defaultGenerator(device);
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

void set_state_of(const c10::Device& device, const at::Tensor& state) {
  at::Generator generator = at::globalContext().defaultGenerator(device);
  const std::lock_guard lock(generator.mutex());
  generator.set_state(state);
}

}  // namespace

RandomState save_random_state(const c10::Device& device) {
  RandomState state;
  const RankGenerator* rank = RankGenerator::current();
  if (rank == nullptr) {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard lock(generator.mutex());
    state.cpu = generator.clone();
  }
  if (!device.is_cpu() && (rank == nullptr || !rank->sets_device()))
    state.device = state_of(device);
  return state;
}

RandomReplay::RandomReplay(RandomState state, const c10::Device& device)
    : state_(std::move(state)), device_(device) {
  if (state_.device.defined()) {
    device_state_ = state_of(device_);
    set_state_of(device_, state_.device);
  }
  if (state_.cpu.has_value()) guard_.emplace(*this);
}

RandomReplay::~RandomReplay() {
  guard_.reset();
  if (device_state_.defined()) set_state_of(device_, device_state_);
}

}  // namespace pipert
