// as_index: a non-negative int as a subscript. Ids are ints (-1 means "none"), containers count in
// size_t.
#pragma once

#include <cstddef>

namespace pipert {

constexpr std::size_t as_index(int i) { return static_cast<std::size_t>(i); }

}  // namespace pipert
