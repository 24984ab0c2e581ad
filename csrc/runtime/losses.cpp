#include "runtime/losses.h"

namespace pipert {

void Losses::merge(const Losses& other) {
  if (empty()) {
    *this = other;
    return;
  }
  for (std::size_t i = 0; i < other.values.size(); ++i) {
    if (!other.values[i].defined()) continue;
    values[i] = other.values[i];
    weights[i] = other.weights[i];
  }
}

}  // namespace pipert
