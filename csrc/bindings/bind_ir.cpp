// Action, Placement and Schedule.

#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>
#include <variant>

#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/text_file.h"
#include "ir/schedule.h"

namespace py = pybind11;

namespace pipert {
namespace {

using ActionOrText = std::variant<Action, std::string>;

Slice to_slice(int slice) {
  if (slice >= 0 && slice <= kMaxSlice) return static_cast<Slice>(slice);
  throw ValueError(concat("slice must be in [0, ", kMaxSlice, "], got ", slice));
}

Action make_action(const std::string& kind, StageIndex stage, std::optional<Microbatch> microbatch,
                   const std::optional<Action>& paired, std::optional<int> slice,
                   WeightVersion version) {
  Action action{.kind = parse_kind(kind),
                .slice = slice ? to_slice(*slice) : kWholeSequence,
                .stage = stage,
                .microbatch = microbatch.value_or(kNoMicrobatch),
                .version = version};
  if (paired.has_value() != (action.kind == ActionKind::kOverlap)) {
    throw ValueError("paired must be given for OVERLAP_F_B, and for it alone");
  }
  if (paired) action = overlap(action, *paired);
  return parse_action(to_string(action));  // what has no text form is no action
}

std::optional<Microbatch> microbatch_of(const Action& action) {
  return action.microbatch == kNoMicrobatch ? std::nullopt : std::optional(action.microbatch);
}

std::optional<int> slice_of(const Action& action) {
  return action.slice == kWholeSequence ? std::nullopt : std::optional<int>(action.slice);
}

std::optional<Action> paired_of(const Action& action) {
  if (action.kind != ActionKind::kOverlap) return std::nullopt;
  return overlapped_backward(action);
}

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

Schedule read_csv(const py::object& path, const std::optional<std::string>& name) {
  const std::string text = read_text_file(path);
  const auto file = py::module_::import("pathlib").attr("Path")(path);
  const std::string stem = py::str(file.attr("stem"));
  const py::gil_scoped_release released;
  return parse_csv(text, name.value_or(stem));
}

std::string write_csv(const Schedule& schedule, const py::object& path) {
  const std::string text = to_csv(schedule);
  if (!path.is_none()) write_text_file(path, text);
  return text;
}

std::string describe(const Schedule& schedule) {
  return concat("<Schedule '", schedule.name, "': ", schedule.num_ranks(), " ranks, ",
                schedule.num_stages(), " stages, ", schedule.num_microbatches, " microbatches>");
}

void bind_action(py::module_& module) {
  py::class_<Action>(module, "Action",
                     R"(One unit of a schedule: kind x stage x microbatch. Immutable.

Kinds: F forward, B backward, I and W its input-gradient and weight-gradient halves, R the forward
computed again; SEND_F, RECV_F, SEND_B, RECV_B transfers; OFFLOAD and RELOAD of activations; UNSHARD,
RESHARD, REDUCE_GRAD, UPDATE of a whole stage; OVERLAP_F_B a forward and a backward run together.)")
      .def(py::init(&make_action), py::arg("kind"), py::arg("stage"),
           py::arg("microbatch") = py::none(), py::kw_only(), py::arg("paired") = py::none(),
           py::arg("slice") = py::none(), py::arg("version") = 0, R"(
Args:
    kind: One of the words above.
    stage: Global stage index, from 0. For OVERLAP_F_B that of the forward.
    microbatch: From 0; None for UNSHARD, RESHARD, REDUCE_GRAD and UPDATE.
    paired: The backward (B or I) of an OVERLAP_F_B.
    slice: Of the microbatch's sequence, from 0; None: the whole sequence.
    version: Of the weights: that a compute action uses, or that UPDATE makes.

Raises:
    ValueError: An unknown kind, or indices that don't fit it.)")
      .def_static("parse", &parse_action, py::arg("text"),
                  R"(Reads PyTorch's action grammar, "2F0", "1SEND_F2", and a superset: "2F0s1v3".

Raises:
    ValueError: The text is not, as a whole, an action; says what was expected where.)")
      .def_property_readonly("kind",
                             [](const Action& self) { return std::string(kind_name(self.kind)); })
      .def_readonly("stage", &Action::stage)
      .def_property_readonly("microbatch", &microbatch_of)
      .def_property_readonly("paired", &paired_of)
      .def_property_readonly("slice", &slice_of)
      .def_readonly("version", &Action::version)
      .def_property_readonly("is_compute", [](const Action& self) { return is_compute(self.kind); })
      .def(py::self == py::self)
      .def(py::self < py::self)
      .def("__hash__", [](const Action& self) { return py::hash(py::str(to_string(self))); })
      .def("__str__", [](const Action& self) { return to_string(self); })
      .def("__repr__", [](const Action& self) { return concat("<Action ", to_string(self), ">"); })
      .def(py::pickle([](const Action& self) { return py::str(to_string(self)); },
                      [](const py::str& text) { return parse_action(std::string(text)); }));
}

void bind_placement(py::module_& module) {
  py::class_<Placement>(module, "Placement", "Which rank owns which stage. Immutable.")
      .def(py::init<int, std::vector<Rank>, int>(), py::arg("num_ranks"), py::arg("ranks"),
           py::arg("num_copies") = 1, R"(
Args:
    num_ranks: At least 1.
    ranks: ranks[stage] is the owner of that stage; every rank must own one.
    num_copies: Of the model; the stages of the first come first. A microbatch passes one copy.

Raises:
    ValueError: A rank out of range, one that owns no stage, or copies that don't divide the stages.)")
      .def_static("loop", &Placement::loop, py::arg("num_ranks"), py::arg("num_stages"),
                  "Stage s on rank s % num_ranks.")
      .def_static("v_shaped", &Placement::v_shaped, py::arg("num_ranks"), py::arg("num_stages"),
                  "Up and down again: for two ranks and four stages 0, 1, 1, 0.")
      .def_static("bidirectional", &Placement::bidirectional, py::arg("num_ranks"),
                  "Two copies of one stage a rank, the second from the last rank to the first.")
      .def_property_readonly("num_ranks", &Placement::num_ranks)
      .def_property_readonly("num_copies", &Placement::num_copies,
                             "Copies of the model: 2 for a bidirectional schedule.")
      .def_property_readonly("num_stages", &Placement::num_stages)
      .def_property_readonly(
          "ranks",
          [](const Placement& self) {
            return std::vector<Rank>(self.ranks().begin(), self.ranks().end());
          },
          "The owner of each stage.")
      .def("rank_of", &Placement::rank_of, py::arg("stage"), "The owner. Raises IndexError.")
      .def(
          "stages_of",
          [](const Placement& self, Rank rank) {
            const auto stages = self.stages_of(rank);
            return std::vector<StageIndex>(stages.begin(), stages.end());
          },
          py::arg("rank"), "The stages of a rank, ascending. Raises IndexError.")
      .def(py::self == py::self)
      .def("__repr__",
           [](const Placement& self) {
             return concat("<Placement of ", self.num_stages(), " stages on ", self.num_ranks(),
                           " ranks>");
           })
      .def(py::pickle(
          [](const Placement& self) {
            return py::make_tuple(self.num_ranks(),
                                  std::vector<Rank>(self.ranks().begin(), self.ranks().end()),
                                  self.num_copies());
          },
          [](const py::tuple& state) {
            return Placement(state[0].cast<int>(), state[1].cast<std::vector<Rank>>(),
                             state[2].cast<int>());
          }));
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

void bind_schedule_text(py::class_<Schedule>& schedule) {
  schedule
      .def_static("parse_csv", &parse_csv, py::arg("text"), py::arg("name") = "csv",
                  py::call_guard<py::gil_scoped_release>(),
                  R"(Reads PyTorch's CSV: a row for each rank, an action in each cell.

An empty cell is an idle step, which carries no meaning and is dropped. The placement and the
numbers of microbatches and slices are read off the actions.

Raises:
    ValueError: Says row and column (from 1), the cell's text and what is wrong with it.)")
      .def_static(
          "from_csv", &read_csv, py::arg("path"), py::arg("name") = py::none(),
          R"(Reads a CSV file; see parse_csv. The name defaults to the file's, without its suffix.

Raises:
    OSError: The file can't be read.
    ValueError: As parse_csv.)")
      .def("to_csv", &write_csv, py::arg("path") = py::none(),
           "The CSV text, which PyTorch reads; written to `path` if that is given.");
}

}  // namespace

void bind_ir(py::module_& module) {
  bind_action(module);
  bind_placement(module);
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
  bind_schedule_text(schedule);
}

}  // namespace pipert
