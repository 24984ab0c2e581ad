// suggest: what a misspelt name may have meant.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pipert {

// The known names that are at most a third of their letters away from `name` (edit distance, case
// aside), nearest first; names at the same distance keep their order.
std::vector<std::string_view> nearest_names(std::string_view name,
                                            std::span<const std::string_view> known);

// "unknown schedule '1f1bb': did you mean '1f1b'? known: gpipe, 1f1b". `what` is the noun,
// "schedule" here.
std::string unknown_name(std::string_view what, std::string_view name,
                         std::span<const std::string_view> known);

}  // namespace pipert
