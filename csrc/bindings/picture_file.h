// picture_file: a drawing, written in the form that its path's suffix asks for.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace pipert {

enum class PictureForm : std::uint8_t { kText, kSvg, kPng };

// Throws ValueError if the path (str or os.PathLike) ends in none of .txt, .svg and .png.
PictureForm form_of(const pybind11::object& path);

// `drawn`: text for kText, else SVG. Throws Python's ImportError for kPng if what makes it isn't
// installed (the extra `png`), and Python's own errors for what goes wrong with the file.
void write_picture(const pybind11::object& path, PictureForm form, const std::string& drawn);

}  // namespace pipert
