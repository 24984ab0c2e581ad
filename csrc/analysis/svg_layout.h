// svg_layout: where things are in an SVG drawing of timelines. Lengths in pixels at 100 %.
#pragma once

namespace pipert {

inline constexpr double kWidth = 1200.0;
inline constexpr double kLeft = 72.0;
inline constexpr double kRight = 112.0;  // holds bubble and peak memory
inline constexpr double kPlotWidth = kWidth - kLeft - kRight;
inline constexpr double kBubbleRight = kWidth - kRight + 50.0;
inline constexpr double kPeakRight = kWidth - 14.0;
inline constexpr double kLegendHeight = 62.0;
inline constexpr double kTitleHeight = 26.0;
inline constexpr double kAxisHeight = 34.0;
inline constexpr double kPanelGap = 10.0;
inline constexpr double kDigitWidth = 6.6;
inline constexpr double kLabelHeight = 14.0;

// How high the rows of a picture are: the fewer pixels, the more ranks.
struct RowLayout {
  double box = 24.0;    // height of a box
  double pitch = 30.0;  // from row to row
  int label_every = 1;  // only each so-many'th rank is named
};

// Arrows need room between the rows.
RowLayout layout_rows(int num_ranks, bool with_arrows);

}  // namespace pipert
