// DeviceDraws: an accelerator's default generator, while ranks of this process draw from it.
//
// Kernels take their numbers from it when they are issued, so ranks that share a device take turns:
// each sets its stream and issues an action's work before another does. What ran on the device
// before is as it was once the last of them has gone.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <mutex>

namespace pipert {

class DeviceDraws {
 public:
  using Turn = std::unique_lock<std::recursive_mutex>;

  // The first one on a device keeps the generator's state; the last to go puts it back.
  explicit DeviceDraws(const c10::Device& device);
  ~DeviceDraws();
  DeviceDraws(const DeviceDraws&) = delete;
  DeviceDraws& operator=(const DeviceDraws&) = delete;

  // The device's draws begin anew from `seed`.
  void set_seed(std::uint64_t seed);
  // Waits for it. A thread may have several. REQUIRES that the GIL is not held.
  Turn take_turn();

 private:
  struct Shared;
  Shared& shared_;
};

}  // namespace pipert
