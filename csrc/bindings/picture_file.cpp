#include "bindings/picture_file.h"

#include "base/error.h"
#include "bindings/text_file.h"

namespace py = pybind11;

namespace pipert {
namespace {

constexpr int kPngScale = 2;  // pixels for each of the SVG's

py::object import_cairosvg() {
  try {
    return py::module_::import("cairosvg");
  } catch (py::error_already_set& error) {
    // OSError: cairosvg is there, but not the cairo library that it loads.
    if (!error.matches(PyExc_ImportError) && !error.matches(PyExc_OSError)) throw;
    const std::string reason = py::str(error.value());
    py::raise_from(error, PyExc_ImportError,
                   concat("a .png needs cairosvg and the cairo library: pip install "
                          "'pipert[png]', and libcairo2 from the system's packages (",
                          reason.substr(0, reason.find('\n')), "); a .svg needs neither")
                       .c_str());
    throw py::error_already_set();
  }
}

void write_png(const py::object& path, const std::string& svg) {
  const py::object make = import_cairosvg().attr("svg2png");
  const py::bytes png = make(py::arg("bytestring") = py::bytes(svg), py::arg("scale") = kPngScale);
  write_text_file(path, png);
}

}  // namespace

PictureForm form_of(const py::object& path) {
  const std::string suffix =
      py::str(py::module_::import("pathlib").attr("Path")(path).attr("suffix"));
  if (suffix == ".txt") return PictureForm::kText;
  if (suffix == ".svg") return PictureForm::kSvg;
  if (suffix == ".png") return PictureForm::kPng;
  throw ValueError(
      concat("path must end in .svg, .png or .txt, got '", std::string(py::str(path)), "'"));
}

void write_picture(const py::object& path, PictureForm form, const std::string& drawn) {
  switch (form) {
    case PictureForm::kText:
    case PictureForm::kSvg:
      write_text_file(path, drawn);
      break;
    case PictureForm::kPng:
      write_png(path, drawn);
      break;
  }
}

}  // namespace pipert
