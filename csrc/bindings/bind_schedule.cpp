// The registry of schedule generators: Schedule.build and schedules().

#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/whole_number.h"
#include "schedule/offload.h"
#include "schedule/registry.h"

namespace py = pybind11;

namespace pipert {
namespace {

std::map<std::string, std::int64_t> to_options(const py::kwargs& kwargs) {
  std::map<std::string, std::int64_t> options;
  for (const auto& [key, value] : kwargs) {
    if (value.is_none()) continue;
    const std::string name = py::str(key);
    if (!py::isinstance<py::int_>(value) || PyBool_Check(value.ptr()) != 0) {
      const std::string type = py::str(py::type::of(value).attr("__name__"));
      throw TypeError(concat("option '", name, "' must be an int, got ", type));
    }
    options[name] = value.cast<std::int64_t>();
  }
  return options;
}

Schedule build(const std::string& name, const WholeNumber& num_ranks,
               const WholeNumber& num_microbatches, const std::optional<WholeNumber>& num_stages,
               bool forwards_alone, const py::kwargs& options) {
  // 0 stands for "not given" on the floor below, so a 0 that was given is told apart here.
  if (num_stages && num_stages->value < 1) {
    throw ValueError(concat("num_stages must be at least 1, got ", num_stages->value));
  }
  const ScheduleRequest request{.num_ranks = num_ranks.value,
                                .num_microbatches = num_microbatches.value,
                                .num_stages = num_stages.value_or(WholeNumber()).value,
                                .options = to_options(options)};
  const py::gil_scoped_release released;
  const Schedule schedule = build_schedule(name, request);
  return forwards_alone ? forward_only(schedule) : schedule;
}

std::vector<std::string> names() { return {schedule_names().begin(), schedule_names().end()}; }

}  // namespace

// REQUIRES bind_ir.
void bind_schedule(py::module_& module) {
  py::class_<Schedule> schedule(module.attr("Schedule"));
  schedule.def_static("build", &build, py::arg("name"), py::kw_only(), py::arg("num_ranks"),
                      py::arg("num_microbatches"), py::arg("num_stages") = py::none(),
                      py::arg("forward_only") = false,
                      R"(Builds a schedule by name; schedules() lists the names.

Args:
    name: Such as "1f1b".
    num_ranks: Ranks of the pipeline, at least 1.
    num_microbatches: At least 1; some schedules need more.
    num_stages: Stages of the model; None: the schedule's own default.
    forward_only: The forwards alone, in their order: an inference schedule.
    **options: The schedule's own options, ints; such as group_size of "interleaved_1f1b".

Raises:
    ValueError: An unknown name or option (with the near ones), or sizes that the schedule can't
        take.
    TypeError: An option that is not an int.)");
  schedule.def(
      "with_offload",
      [](const Schedule& self, const std::optional<std::vector<WholeNumber>>& stages,
         const WholeNumber& ahead) {
        OffloadOptions options{.stages = {}, .ahead = ahead.value};
        if (stages.has_value()) options.stages = to_ints(*stages);
        return with_offload(self, options);
      },
      py::kw_only(), py::arg("stages") = py::none(), py::arg("ahead") = WholeNumber{1},
      py::call_guard<py::gil_scoped_release>(),
      R"(The same schedule, with activations on the host until they are needed.

An OFFLOAD comes right behind each F, a RELOAD before the action that reads its activations, where
at least one compute action lies between the two.

Args:
    stages: Whose activations; None: all stages'.
    ahead: So many compute actions before the one that needs them, activations begin to come back.

Raises:
    IndexError: A stage that the schedule doesn't have.
    TypeError: A stage, or `ahead`, is no int, or is a bool.
    ValueError: `ahead` is negative.)");
  module.def("schedules", &names, "The names of the schedules that Schedule.build knows.");
  module.def(
      "model_copies", [](const std::string& name) { return generator_of(name).num_copies; },
      py::arg("name"),
      "How many copies of the model the named schedule runs. Raises ValueError for a name that is "
      "unknown.");
}

}  // namespace pipert
