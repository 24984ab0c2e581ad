// PassSeed: the number that all streams of one pass begin from. Shared by the ranks of the process.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>

namespace pipert {

class PassSeed {
 public:
  // `given`: the user's. Else the seed is drawn from the CPU's default generator when somebody asks
  // for it, once: it doesn't depend on which rank is first, and a pass that draws nothing leaves
  // the generator as it is.
  explicit PassSeed(std::optional<std::uint64_t> given)
      : is_given_(given.has_value()), seed_(given) {}

  bool is_given() const { return is_given_; }
  // Any thread.
  std::uint64_t get();

 private:
  const bool is_given_;
  std::mutex mutex_;
  std::optional<std::uint64_t> seed_;
};

}  // namespace pipert
