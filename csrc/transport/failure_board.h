// FailureBoard: how a process tells the others that it failed, and learns that one of them did.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace pipert {

// Used by one thread at a time.
class FailureBoard {
 public:
  virtual ~FailureBoard() = default;
  // The first one to publish wins. Takes at most `patience`. Never throws: a job whose store is
  // gone has nobody to tell.
  virtual void publish(const std::string& text, std::chrono::milliseconds patience) noexcept = 0;
  // What another rank has published since the last reset, as far as that is known within
  // `patience`; with none, what the last question brought.
  virtual std::optional<std::string> poll(std::chrono::milliseconds patience) noexcept = 0;
};

}  // namespace pipert
