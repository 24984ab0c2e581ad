// held_bytes: what skips have a rank hold beside its activations, from the arrival of a message (on
// the maker's own rank, from the end of the action that makes it) to the end of its last reader
// there.
#pragma once

#include <vector>

#include "analysis/steps.h"

namespace pipert {

// By rank, then by position: the most while that action runs, or since the one before.
using HeldBytes = std::vector<std::vector<double>>;

// REQUIRES steps that have run and kept their messages. O(messages log steps).
HeldBytes held_by_skips(const Steps& steps);

}  // namespace pipert
