// RankGenerator: the generators that one rank draws from, set to the stream of what it is doing.
//
// Lives on the rank's thread for one pass, and is used there alone. The CPU's is a generator of its
// own. Of an accelerator it is the device's default one, whose state is put back at the end; it is
// set only if the user gave a seed. Ranks that share a device then take turns.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "random/device_draws.h"
#include "random/draw_source.h"
#include "random/pass_seed.h"
#include "random/stream_key.h"

namespace pipert {

class RankGenerator final : public DrawSource {
 public:
  // From here on the calling thread draws from it. `owner`: whose layers (LayerPlaces) it listens
  // to.
  RankGenerator(std::shared_ptr<PassSeed> seed, const c10::Device& device, std::int64_t owner);
  ~RankGenerator() override;  // on the same thread
  RankGenerator(const RankGenerator&) = delete;
  RankGenerator& operator=(const RankGenerator&) = delete;

  // Begins a stream. Costs nothing on the CPU until something is drawn from it.
  void select(const StreamKey& key);
  void enter_layer(std::int64_t layer);
  const StreamKey& key() const { return key_; }
  std::int64_t owner() const { return owner_; }
  // For a thread that does a part of the rank's work: one that draws the same streams. Made on that
  // thread.
  std::unique_ptr<RankGenerator> make_for_this_thread() const {
    auto generator = std::make_unique<RankGenerator>(seed_, device_, owner_);
    generator->takes_turns_ = false;
    return generator;
  }
  // Whether a layer was entered since select().
  bool is_in_layer() const { return is_in_layer_; }
  // Whether the device's default generator is set as well.
  bool sets_device() const { return device_draws_.has_value(); }
  // To be held from before select() until the action's work is issued. Empty where there is nobody
  // to take turns with, and for a thread that does a part of a rank's work: the rank's own thread
  // may have the turn, and wait for it. REQUIRES that the GIL is not held.
  DeviceDraws::Turn take_turn() {
    const bool shares = device_draws_.has_value() && takes_turns_;
    return shares ? device_draws_->take_turn() : DeviceDraws::Turn();
  }

  const at::Generator& generator() override;

  // The calling thread's; null if it has none.
  static RankGenerator* current();

 private:
  void begin_stream();

  std::shared_ptr<PassSeed> seed_;
  c10::Device device_;
  std::int64_t owner_;
  StreamKey key_;
  bool is_in_layer_ = false;
  bool is_seeded_ = false;  // the CPU's, for the stream
  at::Generator generator_;
  std::optional<DeviceDraws> device_draws_;
  bool takes_turns_ = true;
  RankGenerator* previous_;
  DrawGuard guard_;  // last: the rest is there when the thread begins to draw
};

// The layers of one model in which a module stands, ascending; more than one if it is used again.
struct LayerPlaces {
  std::int64_t owner = 0;
  std::vector<std::int64_t> layers;
};

// What the calling thread draws from now on belongs to this layer; with several places to the next
// one after the layer that it was in. Nothing, on a thread that draws for no such owner.
void enter_layer(const LayerPlaces& places);
// Likewise to the loss function.
void enter_loss();

}  // namespace pipert
