#include "base/suggest.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

namespace pipert {
namespace {

constexpr std::size_t kLongestName =
    200;  // the distance costs O(length^2): nothing longer is a near miss

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// Letters to insert, drop or replace to get from `a` to `b` (Levenshtein), one row of the table at
// a time.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (lower(a[i]) == lower(b[j]) ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::vector<std::string_view> nearest_names(std::string_view name,
                                            std::span<const std::string_view> known) {
  if (name.size() > kLongestName) return {};
  std::vector<std::pair<std::size_t, std::string_view>> near;
  for (const std::string_view candidate : known) {
    const std::size_t distance = edit_distance(name, candidate);
    const std::size_t letters = std::max(name.size(), candidate.size());
    if (distance * 3 <= letters + 2) near.emplace_back(distance, candidate);
  }
  std::stable_sort(near.begin(), near.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string_view> names;
  names.reserve(near.size());
  for (const auto& entry : near) names.push_back(entry.second);
  return names;
}

std::string unknown_name(std::string_view what, std::string_view name,
                         std::span<const std::string_view> known) {
  std::string message = "unknown ";
  message.append(what).append(" '").append(name.substr(0, kLongestName)).append("'");
  const auto near = nearest_names(name, known);
  for (std::size_t i = 0; i < near.size() && i < 3; ++i) {
    message.append(i == 0 ? ": did you mean '" : " or '").append(near[i]).append("'");
  }
  message.append(near.empty() ? "; known:" : "? known:");
  if (known.empty()) message.append(" none");
  for (std::size_t i = 0; i < known.size(); ++i) {
    message.append(i == 0 ? " " : ", ").append(known[i]);
  }
  return message;
}

}  // namespace pipert
