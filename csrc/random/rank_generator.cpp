#include "random/rank_generator.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <mutex>
#include <utility>

namespace pipert {
namespace {

thread_local RankGenerator* generator_of_thread = nullptr;

// All 624 words of the state come from the seed. torch's own seeding takes 32 bits of it, so that
// among some ten thousand streams two would be the same.
void seed_generator(at::CPUGeneratorImpl& generator, std::uint64_t seed) {
  at::mt19937_data_pod data{};
  data.seed_ = seed;
  data.left_ = 1;  // the next draw makes the next 624
  data.seeded_ = true;
  std::uint64_t state = seed;
  for (std::size_t i = 0; i < data.state_.size(); i += 2) {
    const std::uint64_t words = mix(state);
    state += 0x9e3779b97f4a7c15;
    data.state_[i] = static_cast<std::uint32_t>(words);
    data.state_[i + 1] = static_cast<std::uint32_t>(words >> 32);
  }
  at::mt19937 engine;
  engine.set_data(data);
  generator.set_engine(engine);
  generator.set_next_float_normal_sample(std::nullopt);
  generator.set_next_double_normal_sample(std::nullopt);
}

}  // namespace

RankGenerator::RankGenerator(std::shared_ptr<PassSeed> seed, const c10::Device& device,
                             std::int64_t owner)
    : seed_(std::move(seed)),
      device_(device),
      owner_(owner),
      generator_(at::detail::createCPUGenerator(0)),
      previous_(std::exchange(generator_of_thread, this)),
      guard_(*this) {
  if (seed_->is_given() && !device.is_cpu()) device_draws_.emplace(device);
}

RankGenerator::~RankGenerator() { generator_of_thread = previous_; }

RankGenerator* RankGenerator::current() { return generator_of_thread; }

void RankGenerator::select(const StreamKey& key) {
  key_ = key;
  if (!seed_->is_given())
    key_.step = 0;  // the seed is the pass's own: the same one, the same draws
  is_in_layer_ = false;
  begin_stream();
}

void RankGenerator::enter_layer(std::int64_t layer) {
  key_.layer = layer;
  is_in_layer_ = true;
  begin_stream();
}

void RankGenerator::begin_stream() {
  is_seeded_ = false;
  if (device_draws_.has_value()) device_draws_->set_seed(stream_seed(seed_->get(), key_));
}

const at::Generator& RankGenerator::generator() {
  if (!is_seeded_) {
    const std::lock_guard lock(generator_.mutex());
    seed_generator(*at::check_generator<at::CPUGeneratorImpl>(generator_),
                   stream_seed(seed_->get(), key_));
    is_seeded_ = true;
  }
  return generator_;
}

void enter_layer(const LayerPlaces& places) {
  RankGenerator* generator = RankGenerator::current();
  if (generator == nullptr || generator->owner() != places.owner || places.layers.empty()) return;
  const std::int64_t here = generator->key().layer;
  const auto next = generator->is_in_layer()
                        ? std::upper_bound(places.layers.begin(), places.layers.end(), here)
                        : std::lower_bound(places.layers.begin(), places.layers.end(), here);
  generator->enter_layer(next == places.layers.end() ? places.layers.front() : *next);
}

void enter_loss() {
  if (RankGenerator* generator = RankGenerator::current())
    generator->enter_layer(StreamKey::kLossLayer);
}

}  // namespace pipert
