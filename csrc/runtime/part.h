// Part: one value of those that a message carries, and the tensors, numbers and None that it is
// made of.
//
// A stage with routes (ir/routes.h) is given a tuple of values and returns one: what it exchanges
// is taken apart and put together again on the way, since each value has a way of its own.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "device/message.h"

namespace pipert {

struct Part {
  std::vector<at::Tensor> tensors;             // as in Message
  std::vector<bool> requires_grad;             // as in Message
  std::shared_ptr<const Structure> structure;  // null: one tensor
};

// The elements of the tuple that the message carries. REQUIRES that it carries one.
std::vector<Part> take_apart(Message message);

// The tensors of a message without a structure. `sizes`: how many each part has, of all together.
std::vector<Part> cut(std::vector<at::Tensor> tensors, const std::vector<std::size_t>& sizes);

// A tuple of the parts.
Message put_together(std::vector<Part> parts);

// The same part for somebody else, who may make its tensors part of a graph. They share memory, but
// no version counter: who writes to it is seen at his own alone.
Part alias_of(const Part& part);

// "a tuple of 3"; `structure`: as in Message.
std::string describe_value(const Structure* structure);

}  // namespace pipert
