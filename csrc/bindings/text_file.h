// text_file: small text files at a Python path (str or os.PathLike), with Python's own errors for
// what goes wrong.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace pipert {

inline std::string read_text_file(const pybind11::object& path) {
  const auto file = pybind11::module_::import("pathlib").attr("Path")(path);
  return file.attr("read_bytes")().cast<pybind11::bytes>();
}

inline void write_text_file(const pybind11::object& path, const std::string& text) {
  const auto file = pybind11::module_::import("pathlib").attr("Path")(path);
  file.attr("write_bytes")(pybind11::bytes(text));
}

}  // namespace pipert
