// Schedule.verify with its Verdict, and Schedule.peak_weight_versions.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "analysis/render_counterexample.h"
#include "analysis/verify.h"
#include "analysis/weight_versions.h"
#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/one_or_many.h"
#include "bindings/picture_file.h"

namespace py = pybind11;

namespace pipert {
namespace {

std::vector<int> weight_versions_of(const Schedule& schedule) {
  VerifyOptions options;
  options.forward_only = is_forward_only(schedule);
  require_valid(schedule, options);
  return peak_weight_versions(split_overlaps(schedule));
}

Verdict verify_schedule(const Schedule& schedule, std::optional<int> capacity, bool rendezvous,
                        bool forward_only, const std::optional<OneOrMany>& memory_limit,
                        const OneOrMany& activation_size, double weight_share,
                        std::vector<std::vector<StageIndex>> tied_stages, bool joint_pairs) {
  if (memory_limit && to_vector(memory_limit).empty()) {
    throw ValueError("memory_limit must be one number or one for each rank, got an empty list");
  }
  return verify(schedule, {.forward_only = forward_only,
                           .joint_pairs = joint_pairs,
                           .capacity = capacity,
                           .send_mode = rendezvous ? SendMode::kRendezvous : SendMode::kBuffered,
                           .memory_limit = to_vector(memory_limit),
                           .activation_size = to_vector(activation_size),
                           .weight_share = weight_share,
                           .tied_stages = std::move(tied_stages)});
}

std::optional<std::string> defect_of(const Verdict& verdict) {
  return verdict.ok() ? std::nullopt : std::optional(std::string(defect_name(verdict.defect)));
}

// A dict of lists of dicts, for tools; None where there is nothing wrong.
py::object counterexample_of(const Verdict& verdict) {
  using namespace py::literals;
  if (verdict.ok()) return py::none();
  py::list places;
  for (const InvolvedPlace& involved : verdict.counterexample.places) {
    places.append(py::dict("rank"_a = involved.place.rank, "position"_a = involved.place.position,
                           "action"_a = involved.action,
                           "role"_a = std::string(role_name(involved.role)),
                           "note"_a = involved.note));
  }
  py::list waits;
  for (const PlaceWait& wait : verdict.counterexample.waits) {
    waits.append(py::dict("source"_a = wait.source, "target"_a = wait.target,
                          "reason"_a = std::string(reason_name(wait.reason))));
  }
  return py::dict("places"_a = places, "waits"_a = waits);
}

// Text without a path, else the picture that the path's suffix asks for.
std::string render_verdict(const Verdict& verdict, const py::object& path) {
  const PictureForm form = path.is_none() ? PictureForm::kText : form_of(path);
  const std::string drawn = form == PictureForm::kText ? render_text(verdict) : render_svg(verdict);
  if (!path.is_none()) write_picture(path, form, drawn);
  return drawn;
}

void bind_verdict(py::module_& module) {
  py::class_<Verdict>(module, "Verdict", "What verify() found. True if the schedule is good.")
      .def_property_readonly("ok", &Verdict::ok)
      .def_property_readonly("defect", &defect_of,
                             "None, malformed, misplaced, missing, doubled, unordered, version, "
                             "collective, memory or deadlock.")
      .def_readonly("message", &Verdict::message,
                    "The counterexample in words; empty if there is none.")
      .def_property_readonly("counterexample", &counterexample_of,
                             R"(The counterexample as places in the schedule; None if there is none.

A dict. `places`: those involved, each with `rank`, `position` on it, `action`, `role` and a `note`
in words; the role is culprit (wrong, or stuck), absent (not there; the position is one that it
could take) or related (what a culprit clashes with or waits for). `waits`: each from a `source` to a
`target`, indices of places, with a `reason`: input, message, room (in a full edge), receiver or
collective. In a deadlock they are a cycle.)")
      .def("render", &render_verdict, py::arg("path") = py::none(),
           R"(Draws the counterexample: text, or a picture if `path` ends in .svg or .png.

The ranks concerned, with their actions around what is wrong and the waits between them.

Args:
    path: Written if given; must end in .svg, .png or .txt.

Returns:
    What was drawn; of a .png the SVG behind it.

Raises:
    ImportError: A .png without `pip install 'pipert[png]'`.
    ValueError: Another suffix.)")
      .def("__bool__", &Verdict::ok)
      .def("__repr__", [](const Verdict& self) {
        return self.ok() ? "<Verdict: ok>" : concat("<Verdict: ", self.message, ">");
      });
}

}  // namespace

// REQUIRES bind_ir.
void bind_verify(py::module_& module) {
  bind_verdict(module);
  py::class_<Schedule> schedule(module.attr("Schedule"));
  schedule.def("verify", &verify_schedule, py::kw_only(), py::arg("capacity") = py::none(),
               py::arg("rendezvous") = false, py::arg("forward_only") = false,
               py::arg("memory_limit") = py::none(), py::arg("activation_size") = 1.0,
               py::arg("weight_share") = 1.0,
               py::arg("tied_stages") = std::vector<std::vector<StageIndex>>(),
               py::arg("joint_pairs") = false, py::call_guard<py::gil_scoped_release>(),
               R"(Shows that the schedule is complete, ordered, free of deadlock and within memory.

Or gives a counterexample.

Args:
    capacity: Messages that each directed pair of ranks may have in flight; None: no bound; 0: as
        rendezvous.
    rendezvous: A send waits for its receive.
    forward_only: An inference schedule: F alone is complete.
    memory_limit: What the activations of a rank may take at any time; one number, or one for each
        rank; None: no limit. An activation lives from its F to its B, or to its W.
    activation_size: Of one microbatch on a stage, in the same unit; one number, or one for each
        stage.
    weight_share: Of an activation, what stays from the end of its I to the end of its W, from 0 to
        1; 1: all of it.
    tied_stages: Groups of stages that share weights, such as [[0, 3]] for an embedding and its head;
        the copies of a bidirectional schedule are known. Their REDUCE_GRADs are one collective.
    joint_pairs: The halves of an overlapped pair run jointly: what both read is taken first, what
        they make is sent last. Else the forward runs first, with all that belongs to it.

Returns:
    A Verdict: true if the schedule is good, else with .defect, .message and .counterexample.

Raises:
    ValueError: A negative capacity; limits, sizes, a share or tied stages that don't fit the schedule.)");
  schedule.def("peak_weight_versions", &weight_versions_of,
               py::call_guard<py::gil_scoped_release>(),
               R"(By rank: the most versions of a stage's weights that it keeps at once.

1 on each rank of a synchronous schedule.

Raises:
    ValueError: A schedule that verify() rejects.)");
}

}  // namespace pipert
