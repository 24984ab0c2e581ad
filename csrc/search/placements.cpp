#include "search/placements.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.h"
#include "base/suggest.h"

namespace pipert {
namespace {

constexpr std::array<std::string_view, 2> kWords = {"loop", "v"};

int stages_of(const std::vector<PlacementChoice>& choices, int num_ranks) {
  for (const PlacementChoice& choice : choices) {
    if (const auto* placement = std::get_if<Placement>(&choice)) return placement->num_stages();
  }
  const bool only_v = std::all_of(choices.begin(), choices.end(), [](const auto& choice) {
    return std::get<std::string>(choice) == "v";
  });
  return !choices.empty() && only_v ? 2 * num_ranks : num_ranks;
}

Placement placement_of(const PlacementChoice& choice, int num_ranks, int num_stages) {
  if (const auto* placement = std::get_if<Placement>(&choice)) {
    if (placement->num_ranks() == num_ranks && placement->num_stages() == num_stages)
      return *placement;
    throw ValueError(concat("placements must have ", num_ranks, " ranks and ", num_stages,
                            " stages, got ", placement->num_ranks(), " ranks and ",
                            placement->num_stages(), " stages"));
  }
  const auto& word = std::get<std::string>(choice);
  if (word == "loop") return Placement::loop(num_ranks, num_stages);
  if (word == "v") return Placement::v_shaped(num_ranks, num_stages);
  throw ValueError(unknown_name("placement", word, kWords));
}

}  // namespace

std::vector<Placement> placements_of(const std::vector<PlacementChoice>& choices, int num_ranks,
                                     std::optional<int> num_stages) {
  if (num_ranks < 1) throw ValueError(concat("num_ranks must be at least 1, got ", num_ranks));
  const int stages = num_stages.value_or(stages_of(choices, num_ranks));
  const std::vector<PlacementChoice> all = {std::string("loop"), std::string("v")};
  std::vector<Placement> placements;
  for (const PlacementChoice& choice : choices.empty() ? all : choices) {
    Placement placement = placement_of(choice, num_ranks, stages);
    const auto same = std::find(placements.begin(), placements.end(), placement);
    if (same == placements.end()) placements.push_back(std::move(placement));
  }
  return placements;
}

}  // namespace pipert
