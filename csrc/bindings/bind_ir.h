// The parts of bind_ir, one for each thing of the ir floor.
#pragma once

#include <pybind11/pybind11.h>

#include "ir/schedule.h"

namespace pipert {

void bind_action(pybind11::module_& module);
void bind_placement(pybind11::module_& module);
void bind_stage_graph(pybind11::module_& module);
void bind_routes(pybind11::module_& module);
// The texts and files of a Schedule: CSV, JSON, the zero-bubble authors' notation.
void bind_formats(pybind11::class_<Schedule>& schedule);

}  // namespace pipert
