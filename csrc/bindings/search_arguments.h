// What the searches take from Python: their arguments in the core's types, and Ctrl-C.
#pragma once

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "bindings/one_or_many.h"
#include "search/placements.h"
#include "search/search.h"

namespace pipert {

using PlacementChoices = std::variant<PlacementChoice, std::vector<PlacementChoice>>;

// With the costs' share of an activation that stays from I to W. Throws ValueError for an empty
// limit, and for several shares.
MemoryCap make_cap(const std::optional<OneOrMany>& memory_limit, const OneOrMany& activation_size,
                   const Costs& costs);

// Throws ValueError for another word than "makespan" and "span".
Objective to_objective(const std::string& word);

// Empty for None. Throws ValueError for an empty list.
std::vector<PlacementChoice> to_choices(const std::optional<PlacementChoices>& choices);

// The longest of the costs and sizes, if one has more than one entry.
std::optional<int> longest_of(const Costs& costs, const MemoryCap& cap);

// Takes the GIL. Throws what a signal's handler throws, such as KeyboardInterrupt; else false.
bool look_for_signals();

}  // namespace pipert
