// Plain values in the byte order of the machine: ranks of one job run on machines of one kind.
#pragma once

#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"

namespace pipert {

template <typename T>
void put(std::string& out, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

// Reads a T from the front of `in` and moves `in` past it. Throws ValueError if `in` is too short.
template <typename T>
T take(std::string_view& in) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (in.size() < sizeof(T)) {
    throw ValueError(
        concat("a message ends early: expected ", sizeof(T), " more bytes, got ", in.size()));
  }
  T value;
  std::memcpy(&value, in.data(), sizeof(T));
  in.remove_prefix(sizeof(T));
  return value;
}

}  // namespace pipert
