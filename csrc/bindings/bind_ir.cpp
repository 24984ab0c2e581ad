// Schedule: its making and its fields; with the parts in bind_ir.h.

#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>
#include <variant>

#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/bind_ir.h"
#include "ir/schedule.h"

namespace py = pybind11;

namespace pipert {
namespace {

using ActionOrText = std::variant<Action, std::string>;

std::vector<std::vector<Action>> to_actions(const std::vector<std::vector<ActionOrText>>& ranks) {
  std::vector<std::vector<Action>> result;
  for (const auto& actions : ranks) {
    auto& out = result.emplace_back();
    for (const ActionOrText& each : actions) {
      const auto* text = std::get_if<std::string>(&each);
      out.push_back(text != nullptr ? parse_action(*text) : std::get<Action>(each));
    }
  }
  return result;
}

Schedule make_schedule(const std::vector<std::vector<ActionOrText>>& actions,
                       const std::optional<Placement>& placement,
                       std::optional<int> num_microbatches, std::optional<int> num_slices,
                       std::string name) {
  Schedule schedule{.name = std::move(name),
                    .num_microbatches = 0,
                    .placement = {},
                    .ranks = to_actions(actions)};
  schedule.num_microbatches = num_microbatches.value_or(count_microbatches(schedule.ranks));
  schedule.num_slices = num_slices.value_or(count_slices(schedule.ranks));
  // The CSV reader knows how to read a placement off the actions.
  schedule.placement = placement ? *placement : parse_csv(to_csv(schedule)).placement;
  return schedule;
}

std::string describe(const Schedule& schedule) {
  return concat("<Schedule '", schedule.name, "': ", schedule.num_ranks(), " ranks, ",
                schedule.num_stages(), " stages, ", schedule.num_microbatches, " microbatches>");
}

void bind_schedule_fields(py::class_<Schedule>& schedule) {
  schedule.def_readonly("name", &Schedule::name, "A label; it does not count in ==.")
      .def_property_readonly("num_ranks", &Schedule::num_ranks)
      .def_property_readonly("num_stages", &Schedule::num_stages)
      .def_readonly("num_microbatches", &Schedule::num_microbatches)
      .def_readonly("num_slices", &Schedule::num_slices, "Of each microbatch's sequence; 1: whole.")
      .def_readonly("placement", &Schedule::placement)
      .def_readonly("actions", &Schedule::ranks,
                    "A fresh list for each rank: its actions, in order.")
      .def_property_readonly("is_asynchronous", &is_asynchronous,
                             "Whether a stage goes on to compute after an update of its weights.")
      .def("forward_only", &forward_only,
           "The forwards alone, in the same order: what evaluation runs.")
      .def(py::self == py::self)
      .def("__str__", [](const Schedule& self) { return to_string(self); })
      .def("__repr__", &describe)
      .def(py::pickle(
          [](const Schedule& self) {
            return py::make_tuple(self.name, self.num_microbatches, self.num_slices, self.placement,
                                  self.ranks);
          },
          [](const py::tuple& state) {
            return Schedule{.name = state[0].cast<std::string>(),
                            .num_microbatches = state[1].cast<int>(),
                            .num_slices = state[2].cast<int>(),
                            .placement = state[3].cast<Placement>(),
                            .ranks = state[4].cast<std::vector<std::vector<Action>>>()};
          }));
}

}  // namespace

void bind_ir(py::module_& module) {
  bind_action(module);
  bind_placement(module);
  bind_stage_graph(module);
  bind_routes(module);
  py::class_<Schedule> schedule(module, "Schedule",
                                R"(For each rank, an ordered list of actions. Immutable.

It may be wrong until verify() says otherwise.)");
  schedule.def(py::init(&make_schedule), py::arg("actions"), py::kw_only(),
               py::arg("placement") = py::none(), py::arg("num_microbatches") = py::none(),
               py::arg("num_slices") = py::none(), py::arg("name") = "custom", R"(
Args:
    actions: For each rank a list of actions, or of their texts.
    placement: Which rank owns which stage; None: read off the compute actions.
    num_microbatches: None: one more than the largest microbatch.
    num_slices: Of each microbatch's sequence; None: one more than the largest slice, or 1.
    name: A label.

Raises:
    ValueError: A bad text, or actions that no placement fits.)");
  bind_schedule_fields(schedule);
  bind_formats(schedule);
}

}  // namespace pipert
