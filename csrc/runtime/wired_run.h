// WiredRun: a Run of a stage with routes (ir/routes.h), resolved: which messages bring what the
// stage is given, and which slots take what it makes.
//
// Made by decode, and then a plain value. Of a rehearsal, whose stages exchange no values, all
// lists of values are empty.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/input.h"
#include "runtime/message_values.h"

namespace pipert {

// What becomes of a value in a message that a Run reads.
struct CarriedValue {
  int position = -1;     // in WiredRun::given; -1: it is for later stages of the rank alone
  bool is_kept = false;  // whether it is for them (too)
};

struct WiredRead {
  Input input;
  std::vector<ValueId> values;        // in the message, in its order
  std::vector<CarriedValue> carried;  // likewise
  int keeps = -1;                     // the SlotId that gets what is kept; -1: nothing is
};

struct WiredWrite {
  int slot = -1;                       // SlotId
  std::vector<std::size_t> positions;  // in WiredRun::made, in the message's order
};

// What a stage is given: an argument, or the gradient of something that it made or read.
struct GivenValue {
  ValueId value = 0;
  int read = -1;           // which read brings it; -1: none, of a gradient that nobody computes
  bool is_shared = false;  // of an argument: others in this process have the same memory
};

class WiredRun {
 public:
  // `values`: null in a rehearsal.
  WiredRun(MessageKey result, const MessageValues* values);

  // It reads the message of `input`, and keeps what is for later stages of its rank in `keeps`.
  void add_read(const Input& input, int keeps, const MessageValues* values);
  // Its result goes into `slot`, on the way to stages of `rank`.
  void add_write(int slot, Rank rank, const MessageValues* values);
  // After the last of them. InternalError unless each argument comes from somewhere, and all that
  // is kept goes somewhere.
  void finish();

  bool is_forward() const { return result_.kind == MessageKind::kActivation; }
  StageIndex stage() const { return result_.stage; }
  Microbatch microbatch() const { return result_.microbatch; }

  // As the stage takes them: arguments by position; gradients of what it made, and behind them, if
  // any comes, those of what it read.
  const std::vector<GivenValue>& given() const { return given_; }
  // As the stage returns them: its outputs, or gradients of its arguments.
  const std::vector<ValueId>& made() const { return made_; }
  const std::vector<WiredRead>& reads() const { return reads_; }
  const std::vector<WiredWrite>& writes() const { return writes_; }
  // By position in made(): into how many slots it goes.
  const std::vector<int>& num_takers() const { return num_takers_; }
  // The read of the neighbour's message, which there is for every microbatch.
  std::size_t neighbour() const { return neighbour_; }
  // Whether the stage is given the one message that it reads, as it is; ...
  bool takes_whole() const { return takes_whole_; }
  // ... and hands on what it returns as one message, likewise.
  bool gives_whole() const { return gives_whole_; }

 private:
  int position_of(ValueId value);
  void check() const;

  MessageKey result_;
  std::vector<GivenValue> given_;
  std::vector<ValueId> made_;
  std::vector<WiredRead> reads_;
  std::vector<WiredWrite> writes_;
  std::vector<int> num_takers_;
  std::size_t neighbour_ = 0;
  bool takes_whole_ = false;
  bool gives_whole_ = false;
};

}  // namespace pipert
