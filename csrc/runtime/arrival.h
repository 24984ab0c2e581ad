// Arrival: what a Run was given, for the error if it fails: the message is gone by then.
//
// Noted before every Run that reads something, so it allocates nothing once it has grown.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/decode.h"
#include "runtime/value_exchange.h"

namespace pipert {

class Arrival {
 public:
  // Forgets what was noted before.
  void note(const Message& message);

  // "stage 1 got float32[2, 8], int64[2] from stage 0 on rank 0", or "stage 2 got hidden_1
  // (float32[2, 8]) from stage 0 on rank 0, ..."; empty if `op`, which it was noted for, reads
  // nothing.
  std::string describe(const Op& op, const ValueExchange& values) const;

 private:
  std::string describe(const WiredRun& run, const ValueExchange& values) const;
  // Of some of them, in a row.
  std::string tensors(std::size_t begin, std::size_t end) const;

  struct Noted {
    bool is_defined = false;
    c10::ScalarType dtype = c10::ScalarType::Undefined;
    std::size_t end = 0;  // of its sizes
  };

  std::vector<Noted> noted_;         // by tensor
  std::vector<std::int64_t> sizes_;  // of all tensors, in a row
};

}  // namespace pipert
