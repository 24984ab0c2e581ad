// Few: a few values in a row: what an instruction waits for, reads or writes. As many as a chain of
// stages needs stand in it, since a large pipeline has a hundred million instructions: each of them
// is small and allocates nothing. More of them are on the heap, and nobody sees the difference.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/error.h"

namespace pipert {

// `T` is an int32 or begins with one, which is 0 or more in every value that is put in; -1 marks
// the end of a row that isn't full. `kMost` values are held without the heap.
//
// Note [A row that knows where it is]
// There is no room for a size or a flag. A first int32 below -1, which no value has, says that the
// rest is on the heap; it and the next one then hold the pointer's two halves. No pointer of a
// process has its highest bits set, so the upper half takes the sign.
template <typename T, std::size_t kMost>
class Few {
  static_assert(std::is_trivially_copyable_v<T> && kMost * sizeof(T) >= 8);

 public:
  Few() { items_.fill(none()); }
  Few(std::initializer_list<T> items) : Few() {
    for (const T& item : items) push_back(item);
  }
  Few(const Few& other) : items_(other.items_) {
    if (is_spilled()) point_to(new std::vector<T>(*other.spilled()));
  }
  Few(Few&& other) noexcept : items_(other.items_) { other.items_.fill(none()); }
  Few& operator=(Few other) noexcept {
    std::swap(items_, other.items_);
    return *this;
  }
  ~Few() {
    if (is_spilled()) delete spilled();
  }

  void push_back(const T& item) {
    if (is_spilled()) {
      spilled()->push_back(item);
    } else if (const std::size_t count = size(); count < kMost) {
      items_[count] = item;
    } else {
      auto* all = new std::vector<T>(items_.begin(), items_.end());
      point_to(all);
      all->push_back(item);
    }
  }

  const T* begin() const { return is_spilled() ? spilled()->data() : items_.data(); }
  const T* end() const { return begin() + size(); }
  T* begin() { return is_spilled() ? spilled()->data() : items_.data(); }
  T* end() { return begin() + size(); }
  std::size_t size() const {
    if (is_spilled()) return spilled()->size();
    const auto is_none = [](const T& item) { return head(item) == -1; };
    return static_cast<std::size_t>(std::find_if(items_.begin(), items_.end(), is_none) -
                                    items_.begin());
  }
  bool empty() const { return head(items_[0]) == -1; }
  // REQUIRES !empty().
  const T& front() const { return *begin(); }

  friend bool operator==(const Few& a, const Few& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  static T none() {
    if constexpr (std::is_integral_v<T>) return T{-1};
    return T{};
  }
  static std::int32_t head(const T& item) {
    std::int32_t head = 0;
    std::memcpy(&head, &item, sizeof(head));
    return head;
  }

  bool is_spilled() const { return head(items_[0]) < -1; }

  std::vector<T>* spilled() const {
    std::array<std::uint32_t, 2> halves;
    std::memcpy(halves.data(), items_.data(), sizeof(halves));
    const std::uint64_t upper = halves[0] & ~kSign;
    return reinterpret_cast<std::vector<T>*>(static_cast<std::uintptr_t>(upper << 32 | halves[1]));
  }
  void point_to(std::vector<T>* all) {
    const std::uint64_t address = reinterpret_cast<std::uintptr_t>(all);
    const std::array<std::uint32_t, 2> halves = {static_cast<std::uint32_t>(address >> 32) | kSign,
                                                 static_cast<std::uint32_t>(address)};
    std::memcpy(static_cast<void*>(items_.data()), halves.data(), sizeof(halves));
    if (spilled() != all || !is_spilled()) throw InternalError("a pointer has its highest bit set");
  }

  static constexpr std::uint32_t kSign = 0x8000'0000;
  std::array<T, kMost> items_;
};

}  // namespace pipert
