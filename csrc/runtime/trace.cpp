#include "runtime/trace.h"

#include <algorithm>

#include "base/index.h"

namespace pipert {

TraceRing::TraceRing(int num_passes, std::size_t num_instructions) : passes_(as_index(num_passes)) {
  for (PassTrace& pass : passes_) pass.events.resize(num_instructions);
}

void TraceRing::begin(bool training, std::int64_t begun_ns) {
  if (passes_.empty()) return;
  if (current_ < 0 || is_over()) ++current_;
  pass_ = &at(current_);
  PassTrace& pass = *pass_;
  pass.training = training;
  pass.begun_ns = begun_ns;
  pass.done_ns = pass.ended_ns = 0;
  pass.num_events = 0;
}

void TraceRing::end(std::int64_t ended_ns) {
  if (PassTrace* pass = current()) pass->ended_ns = ended_ns;
}

int TraceRing::num_passes() const {
  if (current_ < 0) return 0;
  const auto size = static_cast<std::int64_t>(passes_.size());
  // The pass at hand has taken the oldest one's place already.
  return static_cast<int>(is_over() ? std::min(current_ + 1, size) : std::min(current_, size - 1));
}

}  // namespace pipert
