// RandomState: the state of the default generators that a thread draws from, to draw the same
// again.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <optional>

#include "random/draw_source.h"

namespace pipert {

// Of what the thread draws from now; empty where a RankGenerator knows the stream anyhow.
struct RandomState {
  std::optional<at::Generator> cpu;  // a copy of the default generator
  at::Tensor device;  // of the default generator of an accelerator; uint8, on the CPU
};

RandomState save_random_state(const c10::Device& device);

// While it lives, the calling thread draws as from that state on. The CPU's default generator isn't
// touched; an accelerator's is set, and put back. REQUIRES that intercept_draws() was called.
class RandomReplay final : public DrawSource {
 public:
  RandomReplay(RandomState state, const c10::Device& device);
  ~RandomReplay() override;
  RandomReplay(const RandomReplay&) = delete;
  RandomReplay& operator=(const RandomReplay&) = delete;

  const at::Generator& generator() override { return *state_.cpu; }

 private:
  RandomState state_;
  c10::Device device_;
  at::Tensor device_state_;  // before; undefined: the device's was left alone
  std::optional<DrawGuard> guard_;
};

}  // namespace pipert
