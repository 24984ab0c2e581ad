// One bind_<floor> for each floor: each adds its floor's names to the module `_C`.
#pragma once

#include <pybind11/pybind11.h>

namespace pipert {

void bind_errors(pybind11::module_& module);
void bind_ir(pybind11::module_& module);
void bind_schedule(pybind11::module_& module);
void bind_verify(pybind11::module_& module);
void bind_analysis(pybind11::module_& module);
void bind_plan(pybind11::module_& module);
void bind_transport(pybind11::module_& module);
void bind_runtime(pybind11::module_& module);
void bind_rehearsal(pybind11::module_& module);

}  // namespace pipert
