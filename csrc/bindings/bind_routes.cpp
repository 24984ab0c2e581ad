// Routes.

#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bind_ir.h"
#include "ir/routes.h"

namespace py = pybind11;

namespace pipert {
namespace {

using ValueTuple = std::tuple<StageIndex, std::vector<StageIndex>, bool>;
using StageTuple = std::pair<std::vector<ValueId>, std::vector<ValueId>>;

Routes make_routes(const std::vector<ValueTuple>& values, const std::vector<StageTuple>& stages,
                   const std::vector<std::string>& names) {
  Routes routes;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto& [maker, readers, differentiable] = values[i];
    routes.values.push_back({.maker = maker,
                             .readers = readers,
                             .differentiable = differentiable,
                             .name = i < names.size() ? names[i] : concat("value ", i)});
  }
  for (const auto& [inputs, outputs] : stages) routes.stages.push_back({inputs, outputs});
  check(routes);
  return routes;
}

}  // namespace

// REQUIRES bind_stage_graph.
void bind_routes(py::module_& module) {
  py::class_<Routes>(module, "Routes", "Which values the stages of one copy of the model exchange.")
      .def(py::init(&make_routes), py::kw_only(), py::arg("values"), py::arg("stages"),
           py::arg("names") = std::vector<std::string>(), R"(
Args:
    values: Of each its maker, its readers in ascending order, and whether gradients come back.
    stages: Of each the values that it takes, and those that it returns, in order, by their indices.
    names: Of the values, for errors.

Raises:
    ValueError: Values and stages don't fit together.)")
      .def("stage_graph", &stage_graph, "The pairs of stages that exchange any, beyond the chain.");
}

}  // namespace pipert
