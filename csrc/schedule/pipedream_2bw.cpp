// PipeDream-2BW (Narayanan et al. 2021, ICML, arXiv:2006.09503, section 3.1): 1F1B that never
// flushes, with an update after each `accumulate` microbatches, of which no more than two versions
// are needed. Asynchronous: W(t+1) = W(t) - v grad f(W(t-1)).
//
// p = 2 ranks, m = 6 microbatches, accumulate a = 2, B as long as F; v: the version that is used,
// where it is not 0; an update, which takes no time here, stands after B1, B3 and B5:
//
//   rank 0: F0   F1   .    B0   F2   B1   F3   B2   F4v1 B3   F5v1 B4v1 .    B5v1
//   rank 1: .    F0   B0   F1   B1   F2   B2   F3   B3   F4v1 B4v1 F5v1 B5v1 .
//
// Microbatch b, from 0, uses version max(floor(b/a)-1, 0): the newest but one of those that there
// are once the microbatches before its group of a are done. a must be at least p, so that these are
// made by the time that b enters, and divide m. Versions of the weights: 2 on every rank, for m >
// a. Idle: (p-1)(F+B) once, however many updates there are. Peak activations of rank r: min(m,
// p-r).

#include <algorithm>
#include <array>

#include "base/error.h"
#include "schedule/versioned_1f1b.h"

namespace pipert {
namespace {

constexpr std::array<std::string_view, 1> kOptions = {"accumulate"};

int accumulate_of(const ScheduleRequest& request) {
  const std::int64_t accumulate = request.option("accumulate", request.num_ranks);
  if (accumulate < request.num_ranks) {
    throw ValueError(concat("accumulate must be at least ", request.num_ranks, " (num_ranks), got ",
                            accumulate));
  }
  if (request.num_microbatches % accumulate != 0) {
    throw ValueError(concat("num_microbatches must be a multiple of ", accumulate,
                            " (accumulate), got ", request.num_microbatches));
  }
  return static_cast<int>(accumulate);
}

Schedule build(const ScheduleRequest& request) {
  const int accumulate = accumulate_of(request);
  return versioned_1f1b("pipedream_2bw", request, accumulate,
                        [accumulate](StageIndex, Microbatch microbatch) {
                          return std::max(microbatch / accumulate - 1, 0);
                        });
}

}  // namespace

extern const Generator kPipeDream2Bw;
const Generator kPipeDream2Bw{
    .name = "pipedream_2bw",
    .summary =
        "asynchronous: 1f1b without flushes, an update after several backwards, two versions",
    .options = kOptions,
    .build = build};

}  // namespace pipert
