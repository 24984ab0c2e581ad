// ValueExchange: takes the messages of one rank apart into values, and puts them together again,
// for stages with routes (ir/routes.h).
//
// Used by the rank's thread, and by whichever thread runs half of a joint pair: of the other half
// it touches nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "runtime/part.h"
#include "runtime/wired_run.h"
#include "runtime/write_watch.h"

namespace pipert {

class ValueExchange {
 public:
  // `values`: null in a rehearsal.
  ValueExchange(std::shared_ptr<const MessageValues> values, int num_microbatches);

  // What the stage is given, of the messages that the Run reads, in their order; what it keeps goes
  // into `held`, which is by SlotId. ValueError for a message that carries something else.
  Message take_in(const WiredRun& run, std::vector<Message> messages, std::vector<Message>& held);

  // From here on, whether the stage writes to what others read too. `given`: of take_in(), and for
  // the stage (WriteWatch may change its tensors).
  WriteWatch watch(const WiredRun& run, Message& given) const;
  // ValueError if it did.
  void check(const WiredRun& run, const WriteWatch& watch) const;

  // Puts the stage's result where it goes. ValueError if it isn't what the routes say.
  void hand_on(const WiredRun& run, Message result, std::vector<Message>& held);

  // How many tensors what the stage is given has at `position`, once take_in() has given it.
  std::size_t num_given(const WiredRun& run, std::size_t position) const;
  // "hidden_1"
  const std::string& name_of(ValueId value) const;

 private:
  // Of how many tensors the value was made up when it passed this rank. A rank's forwards write it,
  // its backwards of the same microbatch read it: gradients come without a structure.
  std::size_t& size_of(const WiredRun& run, ValueId value);
  // Whether the message is a tuple of these values; then their sizes are known from now on. Of
  // gradients: whether there is one for each of their tensors.
  bool fits(const WiredRun& run, const std::vector<ValueId>& values, const Message& message);
  // ValueError unless it carries what the read brings.
  void check_read(const WiredRun& run, const WiredRead& read, const Message& message);
  // ValueError unless it is what the stage is to return.
  void check_result(const WiredRun& run, const Message& result);
  void check_differentiable(const WiredRun& run, const Message& result);
  std::vector<Part> take_apart(const WiredRun& run, const std::vector<ValueId>& values,
                               Message message);

  std::shared_ptr<const MessageValues> values_;
  std::vector<std::size_t> sizes_;  // by microbatch and value
};

}  // namespace pipert
