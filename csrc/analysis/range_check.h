// range_check: whether each action, looked at alone, can belong to its schedule.
#pragma once

#include "analysis/verify.h"

namespace pipert {

// kMalformed or kMisplaced, or a good verdict. Takes any schedule at all.
Verdict check_ranges(const Schedule& schedule, const VerifyOptions& options);

}  // namespace pipert
