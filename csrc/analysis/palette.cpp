#include "analysis/palette.h"

#include <algorithm>
#include <cmath>

namespace pipert {

namespace {

// The kind whose colours this one has.
ActionKind coloured_as(ActionKind kind) {
  switch (kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kRecompute:
    case ActionKind::kUpdate:
      return kind;
    case ActionKind::kReduceGrad:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kOffload:
    case ActionKind::kReload:
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kOverlap:
      return ActionKind::kReduceGrad;
  }
  return kind;
}

}  // namespace

const KindColours& colours_of(ActionKind kind) {
  return *std::find_if(
      kPalette.begin(), kPalette.end() - 1,
      [look = coloured_as(kind)](const KindColours& colours) { return colours.kind == look; });
}

Colour shade_of(ActionKind kind, Microbatch microbatch, int num_microbatches) {
  const int num_shades = std::clamp(num_microbatches, 1, kNumShades);
  const double steps = std::max(1, num_shades - 1);
  const double share = std::max(0, microbatch) % num_shades / steps;
  const KindColours& colours = colours_of(kind);
  const auto between = [share](int from, int to) {
    return static_cast<int>(std::lround(from + (to - from) * share));
  };
  return {between(colours.lightest.red, colours.darkest.red),
          between(colours.lightest.green, colours.darkest.green),
          between(colours.lightest.blue, colours.darkest.blue)};
}

std::string to_hex(const Colour& colour) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text = "#";
  for (const int value : {colour.red, colour.green, colour.blue}) {
    text += kDigits[static_cast<std::size_t>(value / 16)];
    text += kDigits[static_cast<std::size_t>(value % 16)];
  }
  return text;
}

}  // namespace pipert
