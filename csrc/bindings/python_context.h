// What Python code may know of the microbatch that the calling thread is at. All of it REQUIRES the
// GIL.
#pragma once

#include <pybind11/pybind11.h>

#include "stage/stage.h"

namespace pipert {

// By the names of the keyword arguments that a module may ask for: is_first_microbatch,
// is_last_microbatch, microbatch_index. is_first_microbatch is None, for all microbatches of a
// stage, where the stage's backwards don't begin with the one that its forwards begin with.
pybind11::dict context_values(const RunContext& context);

}  // namespace pipert
