// palette: the colours of a drawing.
//
// Each kind of action has a range of shades of one hue. The ranges don't overlap in lightness
// (CIE L*: F 30-47, W 52-63, B 66-74, I 85-95), so that kinds are told apart in grey too, and are
// at least 14 apart in CIELAB to readers with protanopia, deuteranopia or tritanopia.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "ir/action.h"

namespace pipert {

struct Colour {
  int red = 0;
  int green = 0;
  int blue = 0;
};

struct KindColours {
  ActionKind kind = ActionKind::kForward;
  std::string_view label;
  Colour lightest;
  Colour darkest;
  bool white_number = false;  // or a black one
};

inline constexpr std::array<KindColours, 4> kPalette = {{
    {ActionKind::kForward, "F forward", {18, 116, 185}, {0, 73, 122}, true},
    {ActionKind::kBackward, "B backward", {242, 164, 114}, {239, 132, 71}, false},
    {ActionKind::kInputGrad, "I input gradient", {254, 241, 183}, {240, 212, 76}, false},
    {ActionKind::kWeightGrad, "W weight gradient", {90, 168, 127}, {0, 144, 86}, false},
}};

// Microbatches get darker one after the other, and begin anew after so many.
inline constexpr int kNumShades = 8;

// REQUIRES one of the kinds of kPalette, as below.
const KindColours& colours_of(ActionKind kind);

Colour shade_of(ActionKind kind, Microbatch microbatch, int num_microbatches);

// "#0049a1".
std::string to_hex(const Colour& colour);

}  // namespace pipert
