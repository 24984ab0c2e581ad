// Drawings: Timeline.render, Schedule.render and render_svg.

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "analysis/render.h"
#include "analysis/simulate.h"
#include "bindings/bind.h"
#include "bindings/picture_file.h"

namespace py = pybind11;

namespace pipert {
namespace {

std::string svg_of(const std::vector<std::pair<std::string, Timeline>>& panels, bool transfers) {
  std::vector<Panel> result;
  for (const auto& [title, timeline] : panels) result.push_back({title, timeline});
  return render_svg(result, {.transfers = transfers});
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
  return render_timeline(simulate(schedule, costs.value_or(Costs()), Detail::kMessages), path,
                         width, title.value_or(schedule.name), transfers);
}

}  // namespace

// REQUIRES bind_timeline.
void bind_drawings(py::module_& module) {
  py::class_<Timeline> timeline(module.attr("Timeline"));
  timeline.def("render", &render_timeline, py::arg("path") = py::none(), py::kw_only(),
               py::arg("width") = 100, py::arg("title") = "", py::arg("transfers") = false,
               R"(Draws the timeline: text, or a picture if `path` ends in .svg or .png.

A picture has a box for each action, or, above 20,000 actions or 1000 of one rank, the colour of
what takes most of each point's time.

Args:
    path: Written if given; must end in .svg, .png or .txt.
    width: Of the text, in characters, from 40 to 10000.
    title: Of the picture.
    transfers: In a picture, an arrow for each message, from when it leaves to when it arrives (in
        a measured timeline, to when it is read).

Returns:
    What was drawn; of a .png the SVG behind it.

Raises:
    ImportError: A .png without `pip install 'pipert[png]'`.
    ValueError: Another suffix, a width below 40, or too much to draw.)");
  py::class_<Schedule> schedule(module.attr("Schedule"));
  schedule.def("render", &render_schedule, py::arg("path") = py::none(),
               py::arg("costs") = py::none(), py::kw_only(), py::arg("width") = 100,
               py::arg("title") = py::none(), py::arg("transfers") = false,
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
