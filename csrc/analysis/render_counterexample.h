// render_counterexample: a Verdict as text or as an SVG picture: the ranks concerned as rows, their
// actions around what is wrong, and the waits between them.
#pragma once

#include <string>

#include "analysis/verify.h"

namespace pipert {

// The message, then one line for each rank: [0B0] is wrong or stuck, <1B0> what it clashes with or
// waits for, (0B1) isn't there; under it what is wrong. Of a good verdict: "ok".
std::string render_text(const Verdict& verdict);

// Boxes have the colours of render.h's pictures; those that a stuck rank never comes to are pale.
// Arrows lead from what waits to what it waits for, and back along the rank to what is stuck before
// it. Under the boxes of a rank that passes its memory limit stand the activations alive. However
// many ranks wait for each other, the picture has bounded size.
std::string render_svg(const Verdict& verdict);

}  // namespace pipert
