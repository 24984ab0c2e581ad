#include "schedule/turns.h"

#include <algorithm>

#include "base/error.h"
#include "base/index.h"

namespace pipert {

int group_size_of(const ScheduleRequest& request) {
  const int num_ranks = request.num_ranks;
  const int num_microbatches = request.num_microbatches;
  if (num_microbatches < num_ranks) {
    throw ValueError(concat("num_microbatches must be at least ", num_ranks, " (num_ranks), got ",
                            num_microbatches));
  }
  const std::int64_t group_size = request.option(kGroupSize, num_ranks);
  if (group_size < num_ranks || group_size > num_microbatches) {
    throw ValueError(concat("group_size must be at least ", num_ranks, " (num_ranks) and at most ",
                            num_microbatches, " (num_microbatches), got ", group_size));
  }
  const std::int64_t last = num_microbatches % group_size;
  if (last != 0 && last < num_ranks) {
    throw ValueError(concat("num_microbatches must leave a last group of 0 or at least ", num_ranks,
                            " (num_ranks) microbatches, got ", num_microbatches, " % ", group_size,
                            " (group_size) = ", last));
  }
  return static_cast<int>(group_size);
}

std::vector<Turn> interleaved_turns(int num_chunks, int num_microbatches, int group_size) {
  std::vector<Turn> turns;
  turns.reserve(as_index(num_chunks) * as_index(num_microbatches));
  for (int left = num_microbatches; left > 0; left -= group_size) {
    const Microbatch begin = num_microbatches - left;
    const Microbatch end = begin + std::min(left, group_size);
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      for (Microbatch m = begin; m < end; ++m) turns.push_back({chunk, m});
    }
  }
  return turns;
}

}  // namespace pipert
