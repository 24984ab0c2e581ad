#include "base/structure.h"

#include <bit>

#include "base/wire.h"

namespace pipert {
namespace {

constexpr int kMaxDepth = 100;

Structure decode(std::string_view& in, int depth) {
  if (depth > kMaxDepth) throw ValueError(concat("a structure is nested deeper than ", kMaxDepth));
  const auto code = take<std::uint8_t>(in);
  if (code > static_cast<std::uint8_t>(Structure::Kind::kDict)) {
    throw ValueError(concat("expected the kind of a structure (0 to 8), got ", int{code}));
  }
  Structure result{.kind = static_cast<Structure::Kind>(code), .text = {}, .children = {}};
  switch (result.kind) {
    case Structure::Kind::kTensor:
    case Structure::Kind::kNone:
      break;
    case Structure::Kind::kBool:
    case Structure::Kind::kInt:
      result.integer = take<std::int64_t>(in);
      break;
    case Structure::Kind::kFloat:
      result.real = take<double>(in);
      break;
    case Structure::Kind::kString: {
      const auto size = take<std::uint32_t>(in);
      if (size > in.size()) throw ValueError(concat("a string of ", size, " bytes ends early"));
      result.text = in.substr(0, size);
      in.remove_prefix(size);
      break;
    }
    case Structure::Kind::kTuple:
    case Structure::Kind::kList:
    case Structure::Kind::kDict: {
      const auto size = take<std::uint32_t>(in);
      // Each child takes at least one byte, so this bounds what a broken message can make us
      // allocate.
      if (size > in.size())
        throw ValueError(concat("a container of ", size, " elements ends early"));
      if (result.kind == Structure::Kind::kDict && size % 2 != 0)
        throw ValueError("a dict has a key without a value");
      for (std::uint32_t i = 0; i < size; ++i) result.children.push_back(decode(in, depth + 1));
      break;
    }
  }
  return result;
}

}  // namespace

bool operator==(const Structure& left, const Structure& right) {
  return left.kind == right.kind && left.integer == right.integer &&
         std::bit_cast<std::uint64_t>(left.real) == std::bit_cast<std::uint64_t>(right.real) &&
         left.text == right.text && left.children == right.children;
}

std::size_t num_tensors(const Structure& structure) {
  if (structure.kind == Structure::Kind::kTensor) return 1;
  std::size_t count = 0;
  for (const Structure& child : structure.children) count += num_tensors(child);
  return count;
}

void encode(const Structure& structure, std::string& out) {
  put(out, static_cast<std::uint8_t>(structure.kind));
  switch (structure.kind) {
    case Structure::Kind::kTensor:
    case Structure::Kind::kNone:
      break;
    case Structure::Kind::kBool:
    case Structure::Kind::kInt:
      put(out, structure.integer);
      break;
    case Structure::Kind::kFloat:
      put(out, structure.real);
      break;
    case Structure::Kind::kString:
      put(out, static_cast<std::uint32_t>(structure.text.size()));
      out += structure.text;
      break;
    case Structure::Kind::kTuple:
    case Structure::Kind::kList:
    case Structure::Kind::kDict:
      put(out, static_cast<std::uint32_t>(structure.children.size()));
      for (const Structure& child : structure.children) encode(child, out);
      break;
  }
}

Structure decode_structure(std::string_view& in) { return decode(in, 0); }

}  // namespace pipert
