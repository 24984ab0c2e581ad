// svg: the elements of an SVG picture as text, one line each. Lengths are in user units (pixels at
// 100 %). The same arguments give the same text on every machine.
#pragma once

#include <string>
#include <string_view>

namespace pipert {

struct Rect {
  double x = 0.0;
  double y = 0.0;
  double width = 0.0;
  double height = 0.0;
};

struct Point {
  double x = 0.0;
  double y = 0.0;
};

// At most two digits behind the point, and none that say nothing.
std::string svg_number(double value);

// Safe inside an element and inside quotes. Characters that XML can't hold become blanks.
std::string svg_escaped(std::string_view text);

// `paint`: attributes, such as fill="#ffffff" or class="page".
std::string svg_rect(const Rect& rect, std::string_view paint);
std::string svg_line(const Point& from, const Point& to, std::string_view paint);

// `look`: a class. `at`: where the baseline begins, or ends or has its middle, as the class says.
std::string svg_text(const Point& at, std::string_view look, std::string_view text);

// The first characters of a UTF-8 text, and "..." if it has more than `most`.
std::string shortened(std::string_view text, int most);

}  // namespace pipert
