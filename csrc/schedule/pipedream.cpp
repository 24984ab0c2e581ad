// PipeDream with weight stashing (Narayanan et al. 2019, SOSP, doi:10.1145/3341301.3359646, section
// 3.3): 1F1B that never flushes. Each backward is followed by an update of its stage; a microbatch
// goes back through a stage with the weights with which it came, so a stage keeps those of all that
// are under way. Asynchronous: stages use weights of different ages.
//
// p = 3 ranks, m = 5 microbatches, B as long as F; v: the version that is used, where it is not 0;
// an update, which takes no time here, stands after each B:
//
//   rank 0: F0   F1   F2   .    .    B0   F3v1 B1   F4v2 B2   .    B3v1 .    B4v2
//   rank 1: .    F0   F1   .    B0   F2v1 B1   F3v2 B2v1 F4v3 B3v2 .    B4v3 .
//   rank 2: .    .    F0   B0   F1v1 B1v1 F2v2 B2v2 F3v3 B3v3 F4v4 B4v4 .    .
//
// Microbatch b uses version max(0, b-(p-1-r)) on rank r. Versions of the weights on rank r: p-r,
// for m >= 2(p-1-r). Idle: (p-1)(F+B) once, however many updates there are. Peak activations of
// rank r: min(m, p-r).

#include <algorithm>

#include "schedule/versioned_1f1b.h"

namespace pipert {
namespace {

Schedule build(const ScheduleRequest& request) {
  const int last = request.num_ranks - 1;
  return versioned_1f1b("pipedream", request, 1, [last](StageIndex stage, Microbatch microbatch) {
    return std::max(0, microbatch - (last - stage));
  });
}

}  // namespace

extern const Generator kPipeDream;
const Generator kPipeDream{
    .name = "pipedream",
    .summary = "asynchronous: 1f1b without flushes, an update after each backward, stashed weights",
    .options = {},
    .build = build};

}  // namespace pipert
