// svg_panel: one timeline of an SVG picture: its title, a row for each rank, arrows, the axis.
#pragma once

#include <string>

#include "analysis/render.h"
#include "analysis/svg_layout.h"

namespace pipert {

struct PanelStyle {
  RowLayout rows;
  bool with_arrows = false;
  bool with_bytes = false;  // peaks are in bytes
  int num_columns = 0;      // so many in place of boxes; 0: boxes
};

double panel_height(const Panel& panel, const RowLayout& rows);

// `top`: its upper edge.
std::string svg_panel(const Panel& panel, const PanelStyle& style, double top);

}  // namespace pipert
