// FewIds: up to `kMost` ids in a row, inline: what an instruction waits for, reads or writes. A
// large pipeline has a hundred million instructions, so each of them is small and allocates
// nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/error.h"

namespace pipert {

template <std::size_t kMost>
class FewIds {
 public:
  FewIds() { ids_.fill(kNone); }
  FewIds(std::initializer_list<std::int32_t> ids) : FewIds() {
    for (const std::int32_t id : ids) push_back(id);
  }

  // REQUIRES id >= 0. InternalError if it is full.
  void push_back(std::int32_t id) {
    if (size() == kMost) throw InternalError("an instruction has too many ids of a kind");
    ids_[size()] = id;
  }

  const std::int32_t* begin() const { return ids_.data(); }
  const std::int32_t* end() const { return ids_.data() + size(); }
  std::size_t size() const {
    return static_cast<std::size_t>(std::find(ids_.begin(), ids_.end(), kNone) - ids_.begin());
  }
  bool empty() const { return ids_[0] == kNone; }
  // REQUIRES !empty().
  std::int32_t front() const { return ids_[0]; }

  friend bool operator==(const FewIds&, const FewIds&) = default;

 private:
  static constexpr std::int32_t kNone = -1;
  std::array<std::int32_t, kMost> ids_;
};

}  // namespace pipert
