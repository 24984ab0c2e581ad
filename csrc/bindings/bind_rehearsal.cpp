// rehearse and lower_blindly: what the Executor makes of a schedule that may be wrong.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/bind.h"
#include "plan/blind_lowering.h"
#include "runtime/rehearsal.h"

namespace py = pybind11;

namespace pipert {
namespace {

Rehearsal rehearse_programs(const std::vector<Program>& programs, const Placement& placement,
                            bool training, std::optional<int> capacity, int limit_ms) {
  if (capacity && *capacity < 0) {
    throw ValueError(concat("capacity must be at least 0, got ", *capacity));
  }
  return rehearse(
      programs, placement,
      {.training = training, .capacity = capacity, .limit = std::chrono::milliseconds(limit_ms)});
}

}  // namespace

// REQUIRES bind_ir and bind_plan.
void bind_rehearsal(py::module_& module) {
  py::class_<Rehearsal>(module, "Rehearsal", "What became of Programs that were run.")
      .def_property_readonly(
          "ending", [](const Rehearsal& self) { return std::string(ending_name(self.ending)); },
          "completed, stalled, failed or refused.")
      .def_readonly("message", &Rehearsal::message, "Why; empty if completed.")
      .def_readonly("actions", &Rehearsal::actions, "By rank: the compute actions that were done.")
      .def_readonly("stalled_at", &Rehearsal::stalled_at,
                    "By rank, where the pass stalled: which of its compute actions it was to do "
                    "next, or to send the result of; None for a rank that was through.");
  module.def("lower_blindly", &lower_blindly, py::arg("schedule"), py::kw_only(),
             py::arg("joint_pairs") = false, py::call_guard<py::gil_scoped_release>(),
             R"(Programs of a schedule that may be wrong, for `rehearse` alone.

Raises:
    ValueError: Actions other than F, B, I and W of whole sequences and of version 0, or a placement
        of another number of ranks.)");
  module.def("rehearse", &rehearse_programs, py::arg("programs"), py::arg("placement"),
             py::kw_only(), py::arg("training") = true, py::arg("capacity") = py::none(),
             py::arg("limit_ms") = 1000, py::call_guard<py::gil_scoped_release>(),
             R"(Runs Programs through real Executors, with stages that compute nothing.

Args:
    programs: One for each rank, in rank order.
    placement: Gives each rank its stages.
    training: Or a pass of forwards alone.
    capacity: Messages that each directed pair of ranks may have in flight; None: no bound; 0: a
        send waits for its receive.
    limit_ms: How long nothing may move before the pass counts as stalled.

Raises:
    ValueError: Not one program for each rank, or a negative capacity.)");
}

}  // namespace pipert
