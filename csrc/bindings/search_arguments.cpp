#include "bindings/search_arguments.h"

#include <algorithm>
#include <cstddef>

#include "base/error.h"

namespace py = pybind11;

namespace pipert {

MemoryCap make_cap(const std::optional<OneOrMany>& memory_limit, const OneOrMany& activation_size,
                   const Costs& costs) {
  const auto& shares = costs.weight_share;
  return {.limit = to_vector(memory_limit),
          .activation_size = to_vector(activation_size),
          .weight_share = shares.empty() ? 1.0 : *std::max_element(shares.begin(), shares.end())};
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
