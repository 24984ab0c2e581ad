// counterexample_layout: where things are in an SVG picture of a counterexample. Lengths in pixels
// at 100 %.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "analysis/counterexample_rows.h"

namespace pipert {

inline constexpr double kPictureMargin = 20.0;
inline constexpr double kBoxesLeft = 84.0;
inline constexpr double kBoxHeight = 30.0;
inline constexpr double kNoteHeight = 18.0;  // of a line under the boxes
inline constexpr double kTitleLine = 18.0;

// Where a cell is drawn.
struct CellBox {
  const Cell* cell = nullptr;
  double x = 0.0;
  double width = 0.0;
  double middle() const { return x + width / 2.0; }
};

struct NoteBox {
  double x = 0.0;
  double width = 0.0;
  int line = 0;
  std::string text;
};

struct RowBoxes {
  const Row* row = nullptr;
  double top = 0.0;  // of its boxes; for the caller to set
  std::vector<CellBox> boxes;
  std::vector<double> leaps;  // where actions are left out
  std::vector<NoteBox> notes;
  int num_lines = 0;  // of notes
  double boxes_right = kBoxesLeft;
  double right = kBoxesLeft;  // with its notes
};

// From left to right; notes that would overlap stand under each other. REQUIRES that `row` outlives
// the result.
RowBoxes lay_out(const Row& row);

// The words of a message in lines of bounded length; of a long one the first lines, and "...".
std::vector<std::string> title_lines(const std::string& message);

// About, in the pictures' fonts.
double text_width(std::string_view text);
double title_width(std::string_view text);

}  // namespace pipert
