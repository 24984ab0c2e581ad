// FewIds: up to two ids in a row, inline: what an instruction waits for, reads or writes. A large
// pipeline has a hundred million instructions, so each of them is small and allocates nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/error.h"

namespace pipert {

class FewIds {
 public:
  FewIds() = default;
  FewIds(std::initializer_list<std::int32_t> ids) {
    for (const std::int32_t id : ids) push_back(id);
  }

  // REQUIRES id >= 0. InternalError if there are two already: a Run reads one message and makes
  // one, so that it waits for an arrival and a Release at most.
  void push_back(std::int32_t id) {
    if (size() == ids_.size())
      throw InternalError("an instruction has more than two ids of a kind");
    ids_[size()] = id;
  }

  const std::int32_t* begin() const { return ids_.data(); }
  const std::int32_t* end() const { return ids_.data() + size(); }
  std::size_t size() const {
    return static_cast<std::size_t>(ids_[0] != kNone) + static_cast<std::size_t>(ids_[1] != kNone);
  }
  bool empty() const { return ids_[0] == kNone; }
  // REQUIRES !empty().
  std::int32_t front() const { return ids_[0]; }

  friend bool operator==(const FewIds&, const FewIds&) = default;

 private:
  static constexpr std::int32_t kNone = -1;
  std::array<std::int32_t, 2> ids_ = {kNone, kNone};
};

}  // namespace pipert
