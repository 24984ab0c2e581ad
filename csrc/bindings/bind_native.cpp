#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings/bind.h"
#include "bindings/native_program.h"

namespace py = pybind11;

namespace pipert {

void bind_native(py::module_& module) {
  py::class_<NativeGraph, std::shared_ptr<NativeGraph>>(
      module, "NativeGraph",
      "A stage's forward as a flat program of torch operators. What pipert/native makes of an "
      "exported graph; not for users.")
      .def(py::init([](int num_inputs, int num_parameters, int num_registers,
                       const py::list& instructions, const py::list& outputs) {
             NativeProgram program;
             program.num_inputs = num_inputs;
             program.num_parameters = num_parameters;
             program.num_registers = num_registers;
             program.instructions = instructions_of(instructions);
             program.outputs = outputs_of(outputs);
             return std::make_shared<NativeGraph>(std::move(program));
           }),
           py::kw_only(), py::arg("num_inputs"), py::arg("num_parameters"),
           py::arg("num_registers"), py::arg("instructions"), py::arg("outputs"))
      .def_property_readonly("num_inputs", &NativeGraph::num_inputs)
      .def_property_readonly("num_instructions", &NativeGraph::num_instructions)
      .def("set_parameter", &NativeGraph::set_parameter, py::arg("index"), py::arg("tensor"))
      .def("run", &NativeGraph::run, py::arg("inputs"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace pipert
