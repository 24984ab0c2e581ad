// Action.

#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <optional>

#include "base/error.h"
#include "bindings/bind_ir.h"
#include "ir/action.h"

namespace py = pybind11;

namespace pipert {
namespace {

Slice to_slice(int slice) {
  if (slice >= 0 && slice <= kMaxSlice) return static_cast<Slice>(slice);
  throw ValueError(concat("slice must be in [0, ", kMaxSlice, "], got ", slice));
}

Action make_action(const std::string& kind, StageIndex stage, std::optional<Microbatch> microbatch,
                   const std::optional<Action>& paired, std::optional<int> slice,
                   WeightVersion version) {
  if (microbatch && *microbatch < 0) {
    throw ValueError(concat("microbatch must be at least 0, got ", *microbatch));
  }
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

}  // namespace

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

}  // namespace pipert
