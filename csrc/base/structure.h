// Structure: the shape of a value that stages exchange: tensors, numbers, strings and None in
// nested tuples, lists and dicts. The tensors themselves travel beside it, in depth-first order. A
// plain value.
//
// Format: docs/architecture.md, "What a message carries".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pipert {

struct Structure {
  enum class Kind : std::uint8_t {
    kTensor,
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kTuple,
    kList,
    kDict
  };

  Kind kind = Kind::kTensor;
  std::int64_t integer = 0;         // kBool, kInt
  double real = 0.0;                // kFloat
  std::string text;                 // kString
  std::vector<Structure> children;  // kTuple, kList; kDict: key, value, key, value, ...

  // Floats by their bits: 0.0 is not -0.0, and nan is nan.
  friend bool operator==(const Structure& left, const Structure& right);
};

// How many tensors stand in it.
std::size_t num_tensors(const Structure& structure);

// Appends the binary form of `structure` to `out`.
void encode(const Structure& structure, std::string& out);

// Reads one structure from the front of `in` and moves `in` past it. Throws ValueError for bytes
// that are no structure, and for nesting deeper than 100.
Structure decode_structure(std::string_view& in);

}  // namespace pipert
