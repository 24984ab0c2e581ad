// JsonReader: reads a JSON text (RFC 8259) from front to back, as its caller expects it. It builds
// no tree, so a text is never nested deeper than the caller asks for. It is strict: UTF-8, no comma
// too many, no key twice in an object, nothing after the value. Owns nothing, the text must outlive
// it; for one thread.
//
// Every error is a ValueError with row and column (from 1, in characters), the path of the value
// ("actions[0][2]") and the reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace pipert {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  // Reads an object. `member` is called with each key, and must read its value.
  void object(const std::function<void(const std::string&)>& member);
  // Reads an array. `item` is called at each item, and must read it.
  void array(const std::function<void()>& item);
  std::string string();
  std::int32_t integer();
  // Only blanks may be left.
  void end();

  // Refuses the value that was read last (an object or array that was read to its end counts; in
  // `member`, before its value is read: the key).
  [[noreturn]] void refuse(const std::string& reason) const;

 private:
  // One step from the whole text to a value.
  struct Step {
    std::string key;
    std::size_t index = 0;
    bool is_key = false;
  };

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void skip_blanks();
  void begin_value(char first, std::string_view what);
  // Whether another element follows; eats the comma before it, or the closing bracket.
  bool more(char close, bool is_first);
  std::string quoted();
  void escape(std::string& out);
  std::uint32_t hex4();

  std::string where(std::size_t position) const;
  [[noreturn]] void fail(const std::string& expected) const;

  std::string_view text_;
  std::size_t at_ = 0;     // what is read next
  std::size_t begin_ = 0;  // of the value that was read last
  std::vector<Step> path_;
};

// The text as a JSON string, in double quotes. Throws ValueError if it is not UTF-8.
std::string json_quote(std::string_view text);

}  // namespace pipert
