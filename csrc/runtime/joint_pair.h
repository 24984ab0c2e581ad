// joint_pair: runs the halves of an overlapped pair, on whatever threads somebody likes.
#pragma once

#include <c10/core/Device.h>

#include <optional>

#include "device/lane.h"
#include "runtime/overlap.h"

namespace pipert {

// Runs each half once, by `overlap` or, if that is null, the forward first. Threads other than the
// rank's get its state (gradients, autocast, random numbers, `lane`, intra-op threads) while they
// run a half. `one_by_one`: both halves are of the same stage, which one thread at a time may use.
// Where a half throws, that comes out, whatever became of it on its way; `failing` is then the
// half, or the pair where none did.
void run_jointly(Overlap* overlap, const OverlapHalves& halves, bool one_by_one, Lane& lane,
                 const c10::Device& device, std::optional<Action>& failing);

}  // namespace pipert
