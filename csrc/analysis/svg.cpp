#include "analysis/svg.h"

#include <array>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace pipert {
namespace {

bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U; }

// U+FFFE and U+FFFF, which XML leaves out.
bool is_noncharacter(std::string_view text) {
  return text.substr(0, 3) == "\xEF\xBF\xBE" || text.substr(0, 3) == "\xEF\xBF\xBF";
}

std::string escaped(char c) {
  switch (c) {
    case '&':
      return "&amp;";
    case '<':
      return "&lt;";
    case '>':
      return "&gt;";
    case '"':
      return "&quot;";
    case '\'':
      return "&apos;";
    default:
      return std::string(1, static_cast<unsigned char>(c) < 0x20 ? ' ' : c);
  }
}

}  // namespace

std::string svg_number(double value) {
  std::array<char, 64> buffer{};
  const double rounded = std::round(value * 100.0) / 100.0 + 0.0;  // no -0
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), rounded,
                                 std::chars_format::fixed, 2);
  if (end.ec != std::errc()) return "0";
  std::string text(buffer.data(), end.ptr);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

std::string svg_escaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (is_noncharacter(text.substr(i))) {
      out += ' ';
      i += 2;
    } else {
      out += escaped(text[i]);
    }
  }
  return out;
}

std::string svg_rect(const Rect& rect, std::string_view paint) {
  return concat("<rect x=\"", svg_number(rect.x), "\" y=\"", svg_number(rect.y), "\" width=\"",
                svg_number(rect.width), "\" height=\"", svg_number(rect.height), "\" ", paint,
                "/>\n");
}

std::string svg_line(const Point& from, const Point& to, std::string_view paint) {
  return concat("<line x1=\"", svg_number(from.x), "\" y1=\"", svg_number(from.y), "\" x2=\"",
                svg_number(to.x), "\" y2=\"", svg_number(to.y), "\" ", paint, "/>\n");
}

std::string svg_text(const Point& at, std::string_view look, std::string_view text) {
  return concat("<text x=\"", svg_number(at.x), "\" y=\"", svg_number(at.y), "\" class=\"", look,
                "\">", svg_escaped(text), "</text>\n");
}

std::string shortened(std::string_view text, int most) {
  int count = 0;
  std::size_t cut = text.size();
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!begins_character(text[i])) continue;
    if (++count == most - 2) cut = i;  // the last three give way to the dots
    if (count > most) return std::string(text.substr(0, cut)) + "...";
  }
  return std::string(text);
}

}  // namespace pipert
