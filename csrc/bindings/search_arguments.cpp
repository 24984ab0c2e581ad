#include "bindings/search_arguments.h"

#include <algorithm>
#include <cstddef>

#include "base/error.h"

namespace py = pybind11;

namespace pipert {

MemoryCap make_cap(const std::optional<OneOrMany>& memory_limit, const OneOrMany& activation_size,
                   const Costs& costs) {
  MemoryCap cap;
  cap.limit = to_vector(memory_limit);
  if (memory_limit && cap.limit.empty()) {
    throw ValueError("memory_limit must be one number or one for each rank, got an empty list");
  }
  cap.activation_size = to_vector(activation_size);
  const auto& shares = costs.weight_share;
  const auto other = std::find_if(shares.begin(), shares.end(),
                                  [&](double share) { return share != shares.front(); });
  if (other != shares.end()) {
    throw ValueError(concat("weight_share must be one for all stages here, got ", shares.front(),
                            " and ", *other));
  }
  if (!shares.empty()) cap.weight_share = shares.front();
  return cap;
}

Objective to_objective(const std::string& word) {
  if (word == "makespan") return Objective::kMakespan;
  if (word == "span") return Objective::kSpan;
  throw ValueError("objective must be 'makespan' or 'span', got '" + word + "'");
}

std::vector<PlacementChoice> to_choices(const std::optional<PlacementChoices>& choices) {
  if (!choices) return {};
  if (const auto* one = std::get_if<PlacementChoice>(&*choices)) return {*one};
  auto many = std::get<std::vector<PlacementChoice>>(*choices);
  if (many.empty()) throw ValueError("placements must be at least one, got none");
  return many;
}

std::optional<int> longest_of(const Costs& costs, const MemoryCap& cap) {
  std::size_t longest = 1;
  for (const auto* values :
       {&costs.forward, &costs.input, &costs.weight, &costs.bytes, &cap.activation_size}) {
    longest = std::max(longest, values->size());
  }
  return longest > 1 ? std::optional(static_cast<int>(longest)) : std::nullopt;
}

bool look_for_signals() {
  const py::gil_scoped_acquire held;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  return false;
}

}  // namespace pipert
