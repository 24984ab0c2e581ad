// From the plain tuples of pipert/native to a NativeProgram. REQUIRES the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "stage/input_check.h"
#include "stage/native_graph.h"

namespace pipert {

// Each instruction is a tuple: ("call", operator, overload, arguments, outputs, origin),
// ("scalar", operation, arguments, outputs), ("size", argument, dimension, outputs),
// ("item", argument, position, outputs), ("grad_mode", enabled),
// ("autocast", device, dtype, enabled, cache), ("leave",) or ("layer", owner, layers). An argument
// is ("register", index), ("scalar", index), ("constant", value) or ("list", arguments). ValueError
// for anything else, and for an operator that the dispatcher doesn't know.
std::vector<NativeInstruction> instructions_of(const pybind11::list& instructions);

std::vector<NativeArgument> outputs_of(const pybind11::list& outputs);

// Each is ("constant", value), ("size", tensor, dimension), ("stride", tensor, dimension) or
// (operation, step[, step]).
std::vector<SizeStep> size_steps_of(const pybind11::list& steps);

}  // namespace pipert
