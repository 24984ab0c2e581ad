// Placement.

#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/bind_ir.h"
#include "bindings/whole_number.h"
#include "ir/placement.h"

namespace py = pybind11;

namespace pipert {
namespace {

bool is_first(const Placement& placement, StageIndex stage) {
  placement.rank_of(stage);  // throws
  return placement.is_first(stage);
}

bool is_last(const Placement& placement, StageIndex stage) {
  placement.rank_of(stage);
  return placement.is_last(stage);
}

}  // namespace

void bind_placement(py::module_& module) {
  py::class_<Placement>(module, "Placement", "Which rank owns which stage. Immutable.")
      .def(py::init([](const WholeNumber& num_ranks, const std::vector<WholeNumber>& ranks,
                       const WholeNumber& num_copies) {
             return Placement(num_ranks.value, to_ints(ranks), num_copies.value);
           }),
           py::arg("num_ranks"), py::arg("ranks"), py::arg("num_copies") = WholeNumber{1}, R"(
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
      .def_property_readonly("stages_per_copy", &Placement::stages_per_copy,
                             "Stages of the model: num_stages / num_copies.")
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
      .def("is_first", &is_first, py::arg("stage"),
           "Whether a copy of the model begins with the stage. Raises IndexError.")
      .def("is_last", &is_last, py::arg("stage"),
           "Whether a copy of the model ends with the stage. Raises IndexError.")
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

}  // namespace pipert
