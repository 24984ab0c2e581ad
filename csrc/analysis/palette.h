// palette: the colours of a drawing.
//
// Each kind of action has a range of shades of one hue. The ranges don't overlap in lightness
// (CIE L*: R 13-24, F 30-47, moves 50, W 52-63, B 66-74, UPDATE 82, I 85-95), so that kinds are
// told apart in grey too, and are at least 14 apart in CIELAB to readers with protanopia,
// deuteranopia or tritanopia. What moves data without computing (REDUCE_GRAD, UNSHARD, RESHARD,
// OFFLOAD, RELOAD) shares one colour.
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
  friend bool operator==(const Colour&, const Colour&) = default;
};

struct KindColours {
  ActionKind kind = ActionKind::kForward;
  std::string_view label;
  Colour lightest;
  Colour darkest;
  bool white_number = false;  // or a black one
};

inline constexpr std::array<KindColours, 7> kPalette = {{
    {ActionKind::kForward, "F forward", {18, 116, 185}, {0, 73, 122}, true},
    {ActionKind::kBackward, "B backward", {242, 164, 114}, {239, 132, 71}, false},
    {ActionKind::kInputGrad, "I input gradient", {254, 241, 183}, {240, 212, 76}, false},
    {ActionKind::kWeightGrad, "W weight gradient", {90, 168, 127}, {0, 144, 86}, false},
    {ActionKind::kRecompute, "R forward again", {115, 11, 11}, {71, 7, 7}, true},
    {ActionKind::kReduceGrad, "moves of data", {143, 76, 255}, {143, 76, 255}, true},
    {ActionKind::kUpdate, "update", {0, 223, 255}, {0, 223, 255}, false},
}};

// Microbatches get darker one after the other, and begin anew after so many.
inline constexpr int kNumShades = 8;

// The row of kPalette for a kind that a timeline may hold; REQUIRES such a kind, as below.
const KindColours& colours_of(ActionKind kind);

Colour shade_of(ActionKind kind, Microbatch microbatch, int num_microbatches);

// "#0049a1".
std::string to_hex(const Colour& colour);

}  // namespace pipert
