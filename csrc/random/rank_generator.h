// RankGenerator: the generators that one rank draws from, set to the stream of what it is doing.
//
// Lives on the rank's thread for one pass, and is used there alone. The CPU's is a generator of its
// own. Of an accelerator it is the device's default one, whose state is put back at the end; it is
// set only if the user gave a seed, because ranks on devices of their own don't get into each
// other's way. (Several ranks of one process on one accelerator do: their streams get mixed up.)
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

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
    return std::make_unique<RankGenerator>(seed_, device_, owner_);
  }
  // Whether a layer was entered since select().
  bool is_in_layer() const { return is_in_layer_; }
  // Whether the device's default generator is set as well.
  bool sets_device() const { return device_generator_.has_value(); }

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
  std::optional<at::Generator> device_generator_;
  at::Tensor device_state_;  // before the pass; on the CPU, uint8
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
