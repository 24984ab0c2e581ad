// render: a timeline as text or as an SVG picture.
#pragma once

#include <string>
#include <vector>

#include "analysis/timeline.h"

namespace pipert {

// One line for each rank, at most `width` characters wide, for a terminal. A box reads "F3" (with
// its stage, "2F3", where a rank has several) and then dashes; a box too small for that is its
// kind's letter; dots are idle. At the end of each line stand the rank's bubble and peak memory,
// below all the time axis and a legend. Throws ValueError for a width below 40, and for an infinite
// makespan.
std::string render_text(const Timeline& timeline, int width = 100);

struct Panel {
  std::string title;
  Timeline timeline;
};

struct SvgOptions {
  bool transfers = false;  // an arrow for each message, from where it was made to where it is read
};

// Panels under each other on one time axis each: "scheduled" above "what really ran". A box has the
// colour of its kind in the shade of its microbatch (palette.h), a foot if it is of one of its
// rank's later stages, and the microbatch's number if there is room; idle is hatched. At the end of
// each row stand the rank's bubble and peak memory.
//
// However large the timelines, the picture has bounded size: above 20,000 actions, or 1000 of one
// rank, each column of pixels has the colour of what takes most of its time. Throws ValueError for
// more than 4096 ranks, for more transfers than can be told apart, and for an infinite makespan.
std::string render_svg(const std::vector<Panel>& panels, const SvgOptions& options = {});

}  // namespace pipert
