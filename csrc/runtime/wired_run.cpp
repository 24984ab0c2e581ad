#include "runtime/wired_run.h"

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

bool contains(const std::vector<ValueId>& values, ValueId value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

// Whether somebody in this process has the same memory as `reader`, who gets it so.
bool is_shared(ValueId value, StageIndex reader, const Input& input, const MessageValues& values) {
  if (values.value(value).readers.size() < 2) return false;
  const bool is_copy = input.receiver != nullptr && input.receiver->kind() != "local";
  return !is_copy || values.is_read_nearby(value, reader);
}

// Whether there are `size` of them, and each is at its position.
template <typename T, typename IsAt>
bool are_in_order(const std::vector<T>& entries, std::size_t size, const IsAt& is_at) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (!is_at(entries[i], i)) return false;
  }
  return entries.size() == size;
}

}  // namespace

WiredRun::WiredRun(MessageKey result, const MessageValues* values) : result_(result) {
  if (values == nullptr) return;
  const StageRoutes& routes = values->stage(result.stage);
  for (const ValueId value : is_forward() ? routes.inputs : routes.outputs)
    given_.push_back({.value = value});
  made_ = is_forward() ? routes.outputs : routes.inputs;
  num_takers_.resize(made_.size());
}

int WiredRun::position_of(ValueId value) {
  const auto find = [&] {
    const auto found = std::find_if(given_.begin(), given_.end(),
                                    [&](const GivenValue& given) { return given.value == value; });
    return found == given_.end() ? -1 : static_cast<int>(found - given_.begin());
  };
  const int position = find();
  if (position >= 0 || is_forward() || !contains(made_, value)) return position;
  // The first gradient of something that the stage read.
  for (const ValueId made : made_) given_.push_back({.value = made});
  return find();
}

void WiredRun::add_read(const Input& input, int keeps, const MessageValues* values) {
  const auto& [kind, maker, microbatch] = input.key;
  if (neighbour_of(input.key) == stage()) neighbour_ = reads_.size();
  WiredRead read{.input = input, .values = {}, .carried = {}, .keeps = keeps};
  if (values != nullptr) {
    const std::vector<ValueId> own = values->read(kind, maker, stage());
    const std::vector<ValueId> kept = values->kept(kind, maker, stage());
    read.values = values->brought(kind, maker, stage());
    for (const ValueId value : read.values) {
      CarriedValue carried{.position = -1, .is_kept = contains(kept, value)};
      if (contains(own, value)) {
        carried.position = position_of(value);
        GivenValue& given = given_.at(as_index(carried.position));
        given.read = static_cast<int>(reads_.size());
        given.is_shared = is_forward() && is_shared(value, stage(), input, *values);
      }
      read.carried.push_back(carried);
    }
  }
  reads_.push_back(std::move(read));
}

void WiredRun::add_write(int slot, Rank rank, const MessageValues* values) {
  WiredWrite write{.slot = slot, .positions = {}};
  if (values != nullptr) {
    for (const ValueId value : values->sent(result_.kind, stage(), rank)) {
      const auto made = std::find(made_.begin(), made_.end(), value);
      write.positions.push_back(static_cast<std::size_t>(made - made_.begin()));
      ++num_takers_.at(write.positions.back());
    }
  }
  writes_.push_back(std::move(write));
}

void WiredRun::finish() {
  check();
  const auto is_given_at = [](const CarriedValue& carried, std::size_t position) {
    return !carried.is_kept && carried.position == static_cast<int>(position);
  };
  if (reads_.size() == 1 && reads_.front().keeps < 0)
    takes_whole_ = are_in_order(reads_.front().carried, given_.size(), is_given_at);
  if (writes_.size() == 1)
    gives_whole_ = are_in_order(writes_.front().positions, made_.size(), std::equal_to<>());
}

void WiredRun::check() const {
  for (const WiredRead& read : reads_) {
    const bool keeps_any = std::any_of(read.carried.begin(), read.carried.end(),
                                       [](const CarriedValue& carried) { return carried.is_kept; });
    if (!keeps_any || read.keeps >= 0) continue;
    throw InternalError(concat("stage ", stage(), " keeps nothing of the ",
                               to_string(read.input.key), ", which later stages of its rank need"));
  }
  for (const GivenValue& given : given_) {
    if (!is_forward() || given.read >= 0) continue;
    throw InternalError(concat("nothing brings value ", given.value, " to stage ", stage()));
  }
}

}  // namespace pipert
