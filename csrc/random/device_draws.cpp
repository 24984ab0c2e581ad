#include "random/device_draws.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <memory>
#include <unordered_map>

namespace pipert {

struct DeviceDraws::Shared {
  explicit Shared(const c10::Device& device)
      : generator(at::globalContext().defaultGenerator(device)) {}

  static Shared& of(const c10::Device& device) {
    static auto* const mutex = new std::mutex;  // never destroyed, as what it guards
    static auto* const all = new std::unordered_map<c10::Device, std::unique_ptr<Shared>>;
    const std::lock_guard lock(*mutex);
    auto& entry = (*all)[device];
    if (entry == nullptr) entry = std::make_unique<Shared>(device);
    return *entry;
  }

  at::Generator generator;
  std::recursive_mutex turn;
  std::mutex counting;
  int num_users = 0;
  at::Tensor state_before;  // on the CPU, uint8
};

DeviceDraws::DeviceDraws(const c10::Device& device) : shared_(Shared::of(device)) {
  const std::lock_guard counting(shared_.counting);
  if (shared_.num_users == 0) {
    const std::lock_guard lock(shared_.generator.mutex());
    shared_.state_before = shared_.generator.get_state();
  }
  ++shared_.num_users;
}

DeviceDraws::~DeviceDraws() {
  const std::lock_guard counting(shared_.counting);
  if (--shared_.num_users > 0) return;
  const std::lock_guard lock(shared_.generator.mutex());
  shared_.generator.set_state(shared_.state_before);
}

void DeviceDraws::set_seed(std::uint64_t seed) {
  const std::lock_guard lock(shared_.generator.mutex());
  shared_.generator.set_current_seed(seed);
}

DeviceDraws::Turn DeviceDraws::take_turn() { return Turn(shared_.turn); }

}  // namespace pipert
