// One bind_<floor> for each floor, and more for a large one: each adds names to the module `_C`.
#pragma once

#include <pybind11/pybind11.h>

namespace pipert {

void bind_errors(pybind11::module_& module);
void bind_ir(pybind11::module_& module);
void bind_schedule(pybind11::module_& module);
void bind_verify(pybind11::module_& module);
void bind_costs(pybind11::module_& module);
void bind_timeline(pybind11::module_& module);
void bind_drawings(pybind11::module_& module);
void bind_search(pybind11::module_& module);
void bind_partition(pybind11::module_& module);
void bind_plan(pybind11::module_& module);
void bind_proof(pybind11::module_& module);
void bind_device(pybind11::module_& module);
void bind_random(pybind11::module_& module);
void bind_transport(pybind11::module_& module);
void bind_native(pybind11::module_& module);
void bind_replay(pybind11::module_& module);
void bind_recorder(pybind11::module_& module);
void bind_runtime(pybind11::module_& module);
void bind_rehearsal(pybind11::module_& module);
void bind_probe(pybind11::module_& module);
void bind_kernels(pybind11::module_& module);

}  // namespace pipert
