// The texts and files of a Schedule.

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <variant>

#include "bindings/bind_ir.h"
#include "bindings/text_file.h"
#include "ir/json.h"
#include "ir/zero_bubble.h"

namespace py = pybind11;

namespace pipert {
namespace {

// (type, chunk, microbatch), and seq_split_idx if there is one.
using NodeTuple =
    std::variant<std::tuple<std::string, int, int>, std::tuple<std::string, int, int, int>>;

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

Schedule read_json(const py::object& path) {
  const std::string text = read_text_file(path);
  const py::gil_scoped_release released;
  return parse_json(text);
}

std::string write_json(const Schedule& schedule, const py::object& path) {
  const std::string text = to_json(schedule);
  if (!path.is_none()) write_text_file(path, text);
  return text;
}

ZeroBubbleNode to_node(const NodeTuple& tuple) {
  if (const auto* whole = std::get_if<0>(&tuple)) {
    return {.type = std::get<0>(*whole),
            .chunk = std::get<1>(*whole),
            .microbatch = std::get<2>(*whole)};
  }
  const auto& split = std::get<1>(tuple);
  return {.type = std::get<0>(split),
          .chunk = std::get<1>(split),
          .microbatch = std::get<2>(split),
          .seq_split = std::get<3>(split)};
}

Schedule from_nodes(const std::vector<std::vector<NodeTuple>>& ranks,
                    const std::optional<Placement>& placement, std::string name) {
  const py::gil_scoped_release released;
  std::vector<std::vector<ZeroBubbleNode>> nodes;
  for (const auto& rank : ranks) {
    auto& out = nodes.emplace_back();
    for (const NodeTuple& tuple : rank) out.push_back(to_node(tuple));
  }
  return from_zero_bubble(nodes, placement, std::move(name));
}

void bind_csv(py::class_<Schedule>& schedule) {
  schedule
      .def_static("parse_csv", &parse_csv, py::arg("text"), py::arg("name") = "csv",
                  py::call_guard<py::gil_scoped_release>(),
                  R"(Reads PyTorch's CSV: a row for each rank, an action in each cell.

An empty cell is an idle step, which carries no meaning and is dropped. The placement and the
numbers of microbatches and slices are read off the actions. The text may be bytes, in UTF-8.

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

void bind_json(py::class_<Schedule>& schedule) {
  schedule
      .def_static("parse_json", &parse_json, py::arg("text"),
                  py::call_guard<py::gil_scoped_release>(),
                  R"(Reads what to_json writes: a schedule with its name, sizes and placement.

The text may be bytes, in UTF-8.

Raises:
    ValueError: Says row and column (from 1), the path of the value and what is wrong with it.)")
      .def_static("from_json", &read_json, py::arg("path"),
                  R"(Reads a JSON file; see parse_json.

Raises:
    OSError: The file can't be read.
    ValueError: As parse_json.)")
      .def("to_json", &write_json, py::arg("path") = py::none(),
           "All of the schedule as JSON; written to `path` if that is given.");
}

void bind_zero_bubble(py::class_<Schedule>& schedule) {
  schedule
      .def_static("from_zero_bubble", &from_nodes, py::arg("ranks"), py::kw_only(),
                  py::arg("placement") = py::none(), py::arg("name") = "zero-bubble",
                  R"(Takes a schedule of the zero-bubble authors' Megatron fork.

Args:
    ranks: For each of their stages (our ranks) its nodes in order, as (type, chunk, microbatch) or
        (type, chunk, microbatch, seq_split_idx), in their words: "F", "B" (our I), "W", "BW" (our
        B), "R", "SEND_FORWARD", ... From their local_order:
        [[(n.type.value, n.chunk, n.microbatch) for n in nodes] for nodes in local_order].
    placement: Where the chunks are: chunk c of a rank is the rank's stage c. None: a V, as in their
        own schedules; it must be given for more than two chunks.
    name: A label.

Raises:
    ValueError: Says row (the rank) and column (the node), from 1, and what is wrong with it.)")
      .def_static(
          "parse_zero_bubble", &parse_zero_bubble, py::arg("text"), py::kw_only(),
          py::arg("placement") = py::none(), py::arg("name") = "zero-bubble",
          py::call_guard<py::gil_scoped_release>(),
          R"(Reads a schedule as their programs print it: "f0 F0 B0 W0 b0 w0", a line a rank.

Small letters are the first chunk, capital ones the second (or the only one). A B without a W of its
own is a whole backward.

Args:
    text: With a row for each rank.
    placement: As in from_zero_bubble.
    name: A label.

Raises:
    ValueError: As from_zero_bubble.)");
}

}  // namespace

void bind_formats(py::class_<Schedule>& schedule) {
  bind_csv(schedule);
  bind_json(schedule);
  bind_zero_bubble(schedule);
}

}  // namespace pipert
