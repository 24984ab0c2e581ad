#include "base/json_reader.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/quote.h"
#include "base/utf8.h"

namespace pipert {
namespace {

constexpr std::int64_t kLeast = INT32_MIN;
constexpr std::int64_t kMost = INT32_MAX;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Where the text leaves off, for an error.
std::string found(std::string_view rest) {
  constexpr std::size_t kShown = 20;
  return rest.empty() ? "its end" : quote(rest.substr(0, kShown));
}

}  // namespace

void JsonReader::object(const std::function<void(const std::string&)>& member) {
  begin_value('{', "an object");
  const std::size_t begin = begin_;
  std::set<std::string> keys;
  path_.push_back({.key = {}, .is_key = true});
  for (bool is_first = true; more('}', is_first); is_first = false) {
    if (peek() != '"') fail("expected a key");
    begin_ = at_;
    const std::string key = quoted();
    path_.back().key = key;
    if (!keys.insert(key).second) refuse("the key is there twice");
    skip_blanks();
    if (peek() != ':') fail("expected :");
    ++at_;
    member(key);
    path_.back().key.clear();
  }
  path_.pop_back();
  begin_ = begin;
}

void JsonReader::array(const std::function<void()>& item) {
  begin_value('[', "an array");
  const std::size_t begin = begin_;
  path_.emplace_back();
  for (bool is_first = true; more(']', is_first); is_first = false) {
    item();
    ++path_.back().index;
  }
  path_.pop_back();
  begin_ = begin;
}

std::string JsonReader::string() {
  begin_value('"', "a string");
  at_ = begin_;
  return quoted();
}

std::int32_t JsonReader::integer() {
  skip_blanks();
  begin_ = at_;
  const bool is_negative = peek() == '-';
  if (is_negative) ++at_;
  if (!is_digit(peek())) fail("expected an integer");
  const bool is_zero = peek() == '0';
  std::int64_t value = 0;
  while (is_digit(peek())) {
    value = std::min(value * 10 + (peek() - '0'), kMost + 2);
    ++at_;
  }
  constexpr std::string_view kFraction = ".eE";
  const bool is_fraction = kFraction.find(peek()) != std::string_view::npos;
  if (is_fraction || (is_zero && at_ - begin_ > (is_negative ? 2U : 1U)))
    refuse("expected an integer");
  if (is_negative) value = -value;
  if (value < kLeast || value > kMost) {
    refuse(concat("an integer must be in [", kLeast, ", ", kMost, "]"));
  }
  return static_cast<std::int32_t>(value);
}

void JsonReader::end() {
  skip_blanks();
  if (at_ < text_.size()) fail("expected nothing more");
}

void JsonReader::refuse(const std::string& reason) const {
  throw ValueError(concat(where(begin_), reason));
}

void JsonReader::skip_blanks() {
  constexpr std::string_view kBlanks = " \t\n\r";
  at_ = std::min(text_.find_first_not_of(kBlanks, at_), text_.size());
}

void JsonReader::begin_value(char first, std::string_view what) {
  skip_blanks();
  begin_ = at_;
  if (peek() != first) fail(concat("expected ", what));
  ++at_;
}

bool JsonReader::more(char close, bool is_first) {
  skip_blanks();
  if (peek() == close) {
    ++at_;
    return false;
  }
  if (is_first) return true;
  if (peek() != ',') fail(concat("expected , or ", close));
  ++at_;
  skip_blanks();
  if (peek() == close) fail("expected one more after the comma");
  return true;
}

// REQUIRES that a quote is next.
std::string JsonReader::quoted() {
  std::string out;
  const std::size_t begin = at_++;
  while (peek() != '"') {
    if (at_ == text_.size()) fail("expected the end of the string");
    if (static_cast<unsigned char>(peek()) < 0x20) fail("expected no control character");
    if (peek() == '\\') {
      escape(out);
    } else {
      out += text_[at_++];
    }
  }
  ++at_;
  if (!is_utf8(text_.substr(begin, at_ - begin))) {
    at_ = begin;
    fail("expected UTF-8");
  }
  return out;
}

// REQUIRES that a backslash is next.
void JsonReader::escape(std::string& out) {
  constexpr std::string_view kLetters = "\"\\/bfnrt";
  constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
  const std::size_t begin = at_++;
  const std::size_t letter = kLetters.find(peek());
  if (letter != std::string_view::npos) {
    ++at_;
    out += kMeanings[letter];
    return;
  }
  if (peek() != 'u') fail("expected an escape");
  ++at_;
  std::uint32_t code_point = hex4();
  if (code_point >= 0xD800 && code_point < 0xDC00 && text_.substr(at_, 2) == "\\u") {
    at_ += 2;
    const std::uint32_t low = hex4();
    if (low >= 0xDC00 && low < 0xE000) {
      append_utf8(out, 0x10000 + ((code_point - 0xD800) << 10U) + (low - 0xDC00));
      return;
    }
  }
  if (code_point >= 0xD800 && code_point < 0xE000) {
    at_ = begin;
    fail("expected both halves of a surrogate pair");
  }
  append_utf8(out, code_point);
}

std::uint32_t JsonReader::hex4() {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    constexpr std::string_view kDigits = "0123456789abcdefABCDEF";
    const std::size_t digit = kDigits.find(peek());
    if (digit == std::string_view::npos) fail("expected four hexadecimal digits");
    value = value * 16 + static_cast<std::uint32_t>(digit < 16 ? digit : digit - 6);
    ++at_;
  }
  return value;
}

std::string JsonReader::where(std::size_t position) const {
  const std::string_view before = text_.substr(0, position);
  const auto row = 1 + std::count(before.begin(), before.end(), '\n');
  const std::string_view line = before.substr(before.rfind('\n') + 1);
  const auto column = 1 + std::count_if(line.begin(), line.end(), [](char c) {
                        return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
                      });
  std::string path;
  for (const Step& step : path_) {
    if (!step.is_key) path.append("[").append(std::to_string(step.index)).append("]");
    if (!step.is_key || step.key.empty()) continue;
    if (!path.empty()) path += '.';
    const std::string quoted = quote(step.key);  // printable, whatever the key is
    path.append(quoted.substr(1, quoted.rfind('"') - 1));
  }
  return concat("row ", row, ", column ", column, path.empty() ? "" : ", ", path, ": ");
}

void JsonReader::fail(const std::string& expected) const {
  throw ValueError(concat(where(at_), expected, " at ", found(text_.substr(at_))));
}

std::string json_quote(std::string_view text) {
  if (!is_utf8(text)) throw ValueError(concat("a text in JSON must be UTF-8, got ", quote(text)));
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      (out += '\\') += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out.append("\\u00").append(1, kHex[static_cast<unsigned char>(c) >> 4U]);
      out += kHex[static_cast<unsigned char>(c) & 0xFU];
    } else {
      out += c;
    }
  }
  return out += '"';
}

}  // namespace pipert
