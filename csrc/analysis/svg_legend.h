// svg_legend: what the colours of an SVG drawing mean.
#pragma once

#include <string>
#include <vector>

#include "analysis/render.h"

namespace pipert {

// What is drawn of a picture's panels.
struct LegendContent {
  int num_chunks = 1;        // the most stages of a rank
  bool with_arrows = false;  // messages between ranks
  bool in_columns = false;   // each pixel is what takes most of it, instead of boxes
  bool with_bytes = false;   // peaks are in bytes
};

struct DrawnLegend {
  std::string svg;
  double height = 0.0;
};

// At the top of the picture, in as many rows as it takes.
DrawnLegend svg_legend(const std::vector<Panel>& panels, const LegendContent& content);

// The foot of the boxes of a rank's later stages: the later, the higher. `chunk` counts the
// rank's stages from 0, in ascending order.
double foot_height(int chunk, int num_chunks, double box_height);

}  // namespace pipert
