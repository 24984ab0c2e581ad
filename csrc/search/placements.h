// placements: which placements a search tries, by word or by default.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "ir/placement.h"

namespace pipert {

// "loop", "v", or a placement as it is.
using PlacementChoice = std::variant<std::string, Placement>;

// Words are for num_ranks and num_stages; if that is not given it is what a placement among the
// choices has, else 2 x num_ranks for "v" alone, else num_ranks. No choices: "loop", and "v" where
// that is another one. Each placement once. Throws ValueError for another word, a placement of
// other sizes, or stages that the word can't place.
std::vector<Placement> placements_of(const std::vector<PlacementChoice>& choices, int num_ranks,
                                     std::optional<int> num_stages);

}  // namespace pipert
