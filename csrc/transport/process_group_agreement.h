// The end of a pass among processes: a dissemination barrier (Hensgen, Finkel and Manber 1988) that
// carries the last stage's losses. ceil(log2 p) rounds; in round k rank r tells r + 2^k and hears
// from r - 2^k, so that after the last one each rank has heard, directly or not, from all others.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <memory>

#include "transport/agreement.h"

namespace c10d {
class Backend;
}

namespace pipert {

// `group`: all ranks of the pipeline, in rank order. `max_values`: the most values that any rank
// gives.
std::unique_ptr<Agreement> make_process_group_agreement(c10::intrusive_ptr<c10d::Backend> group,
                                                        int max_values);

}  // namespace pipert
