// simulate and render: methods of Schedule, with Costs, Span and Timeline.

#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <tuple>
#include <variant>

#include "analysis/render.h"
#include "analysis/simulate.h"
#include "analysis/weight_versions.h"
#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/picture_file.h"

namespace py = pybind11;

namespace pipert {
namespace {

using OneOrMany = std::variant<double, std::vector<double>>;
using SpanTuple = std::tuple<Action, double, double>;

std::vector<double> to_vector(const OneOrMany& values) {
  if (const auto* one = std::get_if<double>(&values)) return {*one};
  return std::get<std::vector<double>>(values);
}

Costs make_costs(const OneOrMany& forward, const OneOrMany& input, const OneOrMany& weight,
                 double latency, double bandwidth, const OneOrMany& bytes) {
  return {.forward = to_vector(forward),
          .input = to_vector(input),
          .weight = to_vector(weight),
          .latency = latency,
          .bandwidth = bandwidth,
          .bytes = to_vector(bytes)};
}

Timeline timeline_from_spans(const std::vector<std::vector<SpanTuple>>& ranks) {
  std::vector<std::vector<Span>> result;
  for (const auto& spans : ranks) {
    const auto rank = static_cast<Rank>(result.size());
    auto& out = result.emplace_back();
    for (const auto& [action, start, end] : spans) out.push_back({rank, action, start, end});
  }
  return make_timeline(std::move(result));
}

std::string svg_of(const std::vector<std::pair<std::string, Timeline>>& panels, bool transfers) {
  std::vector<Panel> result;
  for (const auto& [title, timeline] : panels) result.push_back({title, timeline});
  return render_svg(result, {.transfers = transfers});
}

std::vector<int> weight_versions_of(const Schedule& schedule) {
  require_valid(schedule);
  return peak_weight_versions(split_overlaps(schedule));
}

// Text without a path, else the picture that the path's suffix asks for.
std::string render_timeline(const Timeline& timeline, const py::object& path, int width,
                            const std::string& title, bool transfers) {
  const PictureForm form = path.is_none() ? PictureForm::kText : form_of(path);
  const std::string drawn = form == PictureForm::kText
                                ? render_text(timeline, width)
                                : render_svg({{title, timeline}}, {.transfers = transfers});
  if (!path.is_none()) write_picture(path, form, drawn);
  return drawn;
}

std::string render_schedule(const Schedule& schedule, const py::object& path,
                            const std::optional<Costs>& costs, int width,
                            const std::optional<std::string>& title, bool transfers) {
  return render_timeline(simulate(schedule, costs.value_or(Costs())), path, width,
                         title.value_or(schedule.name), transfers);
}

std::string describe(const Timeline& timeline) {
  return concat("<Timeline: ", timeline.ranks.size(), " ranks, makespan ", timeline.makespan, ">");
}

void bind_costs(py::module_& module) {
  const Costs defaults;
  py::class_<Costs>(module, "Costs",
                    "What actions and messages take, in any one unit of time; seconds by custom.")
      .def(py::init(&make_costs), py::kw_only(), py::arg("forward") = 1.0, py::arg("input") = 1.0,
           py::arg("weight") = 1.0, py::arg("latency") = 0.0, py::arg("bandwidth") = 0.0,
           py::arg("bytes") = 0.0, R"(
Args:
    forward: Time of F; one number, or one for each stage.
    input: Time of I, the input half of backward, likewise. B takes input + weight.
    weight: Time of W, the weight half, likewise.
    latency: Time of one message between ranks; it holds up neither of them.
    bandwidth: Bytes for each unit of time, of each message; 0: infinite.
    bytes: Of one activation out of a stage, likewise; its gradient takes as many.)")
      .def_readonly("forward", &Costs::forward)
      .def_readonly("input", &Costs::input)
      .def_readonly("weight", &Costs::weight)
      .def_readonly("latency", &Costs::latency)
      .def_readonly("bandwidth", &Costs::bandwidth)
      .def_readonly("bytes", &Costs::bytes);
}

void bind_timeline(py::module_& module) {
  py::class_<Span>(module, "Span", "When one compute action ran.")
      .def_readonly("rank", &Span::rank)
      .def_readonly("action", &Span::action)
      .def_readonly("start", &Span::start)
      .def_readonly("end", &Span::end)
      .def(py::self == py::self)
      .def("__repr__", [](const Span& self) {
        return concat("<Span ", to_string(self.action), " on rank ", self.rank, ": ", self.start,
                      " to ", self.end, ">");
      });
  py::class_<Timeline>(module, "Timeline",
                       "When each compute action of each rank ran, or would run.")
      .def_static("from_spans", &timeline_from_spans, py::arg("ranks"),
                  R"(Makes a timeline of what really happened; it knows no critical path.

Args:
    ranks: For each rank a list of (action, start, end), in order; F, B, I and W alone.

Raises:
    ValueError: Another kind of action, or times that make no span.)")
      .def_readonly("ranks", &Timeline::ranks,
                    "By rank: its spans, in order. Overlapped pairs are taken apart.")
      .def_readonly("makespan", &Timeline::makespan, "First start on any rank to last end on any.")
      .def_readonly("spans", &Timeline::spans, "By rank: its first start to its last end.")
      .def_readonly("busy", &Timeline::busy, "By rank: the sum of its compute.")
      .def_readonly("bubble", &Timeline::bubble, "By rank: 1 - busy / makespan.")
      .def_readonly("peak_memory", &Timeline::peak_memory,
                    "By rank: activations (of one stage for one microbatch) alive at once.")
      .def_readonly("critical_path", &Timeline::critical_path,
                    "The spans that the makespan waits for, first to last.")
      .def("render", &render_timeline, py::arg("path") = py::none(), py::kw_only(),
           py::arg("width") = 100, py::arg("title") = "", py::arg("transfers") = false,
           R"(Draws the timeline: text, or a picture if `path` ends in .svg or .png.

A picture has a box for each action, or, above 20,000 actions or 1000 of one rank, the colour of
what takes most of each point's time.

Args:
    path: Written if given; must end in .svg, .png or .txt.
    width: Of the text, in characters, at least 40.
    title: Of the picture.
    transfers: In a picture, an arrow for each message, from the end of the action that made it to
        the start of the one that reads it.

Returns:
    What was drawn; of a .png the SVG behind it.

Raises:
    ImportError: A .png without `pip install 'pipert[png]'`.
    ValueError: Another suffix, a width below 40, or too much to draw.)")
      .def("__repr__", &describe);
}

}  // namespace

// REQUIRES bind_ir.
void bind_analysis(py::module_& module) {
  bind_costs(module);
  bind_timeline(module);
  py::class_<Schedule> schedule(module.attr("Schedule"));
  schedule
      .def("peak_weight_versions", &weight_versions_of, py::call_guard<py::gil_scoped_release>(),
           R"(By rank: the most versions of a stage's weights that it keeps at once.

1 on each rank of a synchronous schedule.

Raises:
    ValueError: A schedule that verify() rejects.)")
      .def("simulate", &simulate, py::arg("costs") = Costs(),
           py::call_guard<py::gil_scoped_release>(),
           R"(Runs the schedule on paper.

A schedule of forwards alone is taken as an inference schedule.

Args:
    costs: What actions and messages take; by default 1 for each of F, I and W, and nothing for
        messages.

Raises:
    ValueError: Costs that don't fit the schedule, or a schedule that verify() rejects.)")
      .def("render", &render_schedule, py::arg("path") = py::none(), py::arg("costs") = py::none(),
           py::kw_only(), py::arg("width") = 100, py::arg("title") = py::none(),
           py::arg("transfers") = false,
           R"(Simulates the schedule and draws it; see Timeline.render.

The title defaults to the name.)");
  module.def(
      "render_svg", &svg_of, py::arg("panels"), py::kw_only(), py::arg("transfers") = false,
      py::call_guard<py::gil_scoped_release>(),
      R"(An SVG picture of timelines under each other: what was scheduled above what really ran.

Args:
    panels: (title, timeline) of each.
    transfers: An arrow for each message.

Raises:
    ValueError: More than can be drawn.)");
}

}  // namespace pipert
