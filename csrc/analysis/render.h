// render: a timeline as text or as an SVG picture.
#pragma once

#include <string>
#include <vector>

#include "analysis/timeline.h"

namespace pipert {

// One line for each rank, at most `width` characters wide, for a terminal. A box reads "F3" (with
// its stage, "2F3", where a rank has several) and then dashes; a box too small for that is its
// kind's letter. At the end of each line stands the rank's bubble. Throws ValueError for a width
// below 40.
std::string render_text(const Timeline& timeline, int width = 100);

struct Panel {
  std::string title;
  Timeline timeline;
};

// Panels under each other on one time axis each: "scheduled" above "what really ran". A box has the
// colour of its kind, paler for a rank's later stages, and its microbatch's number if there is
// room. At the end of each row stands the rank's bubble.
std::string render_svg(const std::vector<Panel>& panels);

}  // namespace pipert
