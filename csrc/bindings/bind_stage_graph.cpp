// StageGraph.

#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "bindings/bind_ir.h"
#include "bindings/whole_number.h"
#include "ir/stage_graph.h"

namespace py = pybind11;

namespace pipert {
namespace {

using Pairs = std::vector<std::pair<WholeNumber, WholeNumber>>;

std::vector<StagePair> to_stage_pairs(const Pairs& given) {
  std::vector<StagePair> pairs;
  for (const auto& [from, to] : given) pairs.push_back({from.value, to.value});
  return pairs;
}

py::list list_of(const std::vector<StagePair>& pairs) {
  py::list result;
  for (const StagePair& pair : pairs) result.append(py::make_tuple(pair.from, pair.to));
  return result;
}

}  // namespace

void bind_stage_graph(py::module_& module) {
  py::class_<StageGraph>(module, "StageGraph",
                         R"(Which stages hand data to which beyond the chain of stages. Immutable.

Of one copy of the model. Along the chain each stage takes the activation of the one before it, and gives
it back a gradient.)")
      .def(py::init([](const Pairs& activations, const Pairs& gradients) {
             return make_stage_graph(to_stage_pairs(activations), to_stage_pairs(gradients));
           }),
           py::kw_only(), py::arg("activations") = Pairs{}, py::arg("gradients") = Pairs{}, R"(
Args:
    activations: (from, to): an activation of stage `from` goes to stage `to`, after the next one.
    gradients: (from, to): a gradient of stage `from` goes to stage `to`, before the one before it.

Raises:
    ValueError: A pair of neighbours, one in the wrong direction, or a stage below 0.)")
      .def_property_readonly("activations",
                             [](const StageGraph& self) { return list_of(self.activations); })
      .def_property_readonly("gradients",
                             [](const StageGraph& self) { return list_of(self.gradients); })
      .def_property_readonly("is_chain", &StageGraph::is_chain, "Whether there is nothing else.")
      .def(py::self == py::self)
      .def("__repr__",
           [](const StageGraph& self) { return "<StageGraph: " + to_string(self) + ">"; });
}

}  // namespace pipert
