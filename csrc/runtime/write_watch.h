// WriteWatch: whether a stage writes in place to what others read too.
//
// Used by one thread. It holds no tensor: those may die meanwhile. Version counters tell; tensors
// of inference mode have none, so the stage is given other tensors, which have, on the same memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "ir/routes.h"

namespace pipert {

class WriteWatch {
 public:
  // Of `value`, from here on. Of one that can't count writes (a subclass of inference mode, say)
  // nothing is seen.
  void add(ValueId value, at::Tensor& tensor);
  // The first value that was written to since.
  std::optional<ValueId> find_written() const;

 private:
  struct Watched {
    ValueId value = 0;
    c10::VariableVersion version;  // of the tensor, which counts on
    std::uint32_t before = 0;
  };
  std::vector<Watched> watched_;
};

}  // namespace pipert
