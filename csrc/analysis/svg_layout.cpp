#include "analysis/svg_layout.h"

#include <algorithm>
#include <cmath>

#include "analysis/axis.h"

namespace pipert {
namespace {

constexpr double kMostHeight = 2000.0;  // of all rows together, as long as boxes can be seen
constexpr double kLeastBox = 2.0;

}  // namespace

RowLayout layout_rows(int num_ranks, bool with_arrows) {
  RowLayout layout;
  const double gap = with_arrows ? 16.0 : layout.pitch - layout.box;
  layout.pitch = layout.box + gap;
  if (num_ranks * layout.pitch <= kMostHeight) return layout;
  layout.pitch = std::max(kLeastBox, std::floor(kMostHeight / num_ranks));
  layout.box = std::max(kLeastBox, std::floor(layout.pitch * 0.8));
  layout.label_every = static_cast<int>(std::ceil(tick_step(kLabelHeight / layout.pitch, 1.0)));
  return layout;
}

}  // namespace pipert
