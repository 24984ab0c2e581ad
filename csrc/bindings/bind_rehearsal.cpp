// rehearse and lower_blindly: what the Executor makes of a schedule that may be wrong.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "base/error.h"
#include "bindings/bind.h"
#include "plan/blind_lowering.h"
#include "runtime/rehearsal.h"

namespace py = pybind11;

namespace pipert {
namespace {

RehearsalOptions make_options(bool training, int limit_ms, int num_passes) {
  if (num_passes < 1) throw ValueError(concat("num_passes must be at least 1, got ", num_passes));
  RehearsalOptions options;
  options.training = training;
  options.limit = std::chrono::milliseconds(limit_ms);
  options.num_passes = num_passes;
  return options;
}

Rehearsal rehearse_programs(const std::vector<Program>& programs, const Placement& placement,
                            bool training, std::optional<int> capacity, int limit_ms,
                            int num_passes, int spin_us) {
  if (capacity && *capacity < 0) {
    throw ValueError(concat("capacity must be at least 0, got ", *capacity));
  }
  if (spin_us < 0) throw ValueError(concat("spin_us must be at least 0, got ", spin_us));
  RehearsalOptions options = make_options(training, limit_ms, num_passes);
  options.capacity = capacity;
  options.spin_us = spin_us;
  return rehearse(programs, placement, options);
}

}  // namespace

// REQUIRES bind_ir, bind_plan and bind_transport.
void bind_rehearsal(py::module_& module) {
  py::class_<Rehearsal>(module, "Rehearsal", "What became of Programs that were run.")
      .def_property_readonly(
          "ending", [](const Rehearsal& self) { return std::string(ending_name(self.ending)); },
          "completed, stalled, failed or refused.")
      .def_readonly("message", &Rehearsal::message, "Why; empty if completed.")
      .def_readonly("actions", &Rehearsal::actions,
                    "By rank: the compute actions of the last pass that were done.")
      .def_readonly("pass_ns", &Rehearsal::pass_ns,
                    "Nanoseconds of each completed pass, from the first instruction of any rank to "
                    "the last.")
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
             py::arg("limit_ms") = 1000, py::arg("num_passes") = 1, py::arg("spin_us") = 0,
             py::call_guard<py::gil_scoped_release>(),
             R"(Runs Programs through real Executors, with stages that compute nothing.

Args:
    programs: One for each rank, in rank order.
    placement: Gives each rank its stages.
    training: Or a pass of forwards alone.
    capacity: Messages that each directed pair of ranks may have in flight; None: no bound; 0: a
        send waits for its receive.
    limit_ms: How long nothing may move before the pass counts as stalled.
    num_passes: One after the other, as long as they complete.
    spin_us: How long a rank looks for a message before it sleeps.

Raises:
    ValueError: Not one program for each rank, or an option that is out of range.)");
  module.def(
      "rehearse_rank",
      [](const Program& program, const Placement& placement, ExternalChannels& channels,
         bool training, int limit_ms, int num_passes) {
        const RehearsalOptions options = make_options(training, limit_ms, num_passes);
        return rehearse_rank(program, placement, std::move(channels), options);
      },
      py::arg("program"), py::arg("placement"), py::arg("channels"), py::kw_only(),
      py::arg("training") = true, py::arg("limit_ms") = 1000, py::arg("num_passes") = 1,
      py::call_guard<py::gil_scoped_release>(),
      R"(Runs one rank as `rehearse` does, while other processes run theirs.

Args:
    program: Of this rank.
    placement: Gives each rank its stages.
    channels: To and from the other ranks; they are taken out.
    training: Or a pass of forwards alone.
    limit_ms: How long nothing may move before the pass counts as stalled.
    num_passes: One after the other, as long as they complete; the same number on all ranks.

Raises:
    ValueError: The program of another placement, or an option that is out of range.)");
}

}  // namespace pipert
