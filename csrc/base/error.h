// Exceptions of the torch-free floors.
//
// A caller's mistake is one of the first three; the bindings translate each to the Python exception
// of the same name. Messages say what was expected, what came and where. InternalError is our own
// mistake.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace pipert {

class ValueError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class IndexError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class TypeError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// Streams its arguments into one string: concat("rank ", 3) is "rank 3".
template <typename... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

}  // namespace pipert
