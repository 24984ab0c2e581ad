// PipeDream with vertical sync (Narayanan et al. 2019, SOSP, doi:10.1145/3341301.3359646, section
// 3.3): the order of pipedream, but a microbatch uses the same version of the weights on all
// stages, that with which it entered the first one. Asynchronous: w(t+1) = w(t) - v grad
// f(w(t-p+1)).
//
// p = 3 ranks, m = 5 microbatches, B as long as F; v: the version that is used, where it is not 0;
// an update, which takes no time here, stands after each B:
//
//   rank 0: F0   F1   F2   .    .    B0   F3v1 B1   F4v2 B2   .    B3v1 .    B4v2
//   rank 1: .    F0   F1   .    B0   F2   B1   F3v1 B2   F4v2 B3v1 .    B4v2 .
//   rank 2: .    .    F0   B0   F1   B1   F2   B2   F3v1 B3v1 F4v2 B4v2 .    .
//
// Microbatch b uses version max(0, b-(p-1)). Versions of the weights: p on every rank, for m >=
// 2(p-1). Idle: (p-1)(F+B) once, however many updates there are. Peak activations of rank r:
// min(m, p-r).

#include <algorithm>

#include "schedule/versioned_1f1b.h"

namespace pipert {
namespace {

Schedule build(const ScheduleRequest& request) {
  const int last = request.num_ranks - 1;
  return versioned_1f1b(
      "pipedream_vertical_sync", request, 1,
      [last](StageIndex, Microbatch microbatch) { return std::max(0, microbatch - last); });
}

}  // namespace

extern const Generator kPipeDreamVerticalSync;
const Generator kPipeDreamVerticalSync{
    .name = "pipedream_vertical_sync",
    .summary = "asynchronous: pipedream, with one version of the weights for a microbatch",
    .options = {},
    .build = build};

}  // namespace pipert
