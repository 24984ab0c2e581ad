// Channel: what carries the messages of one edge, a Sender on its source and a Receiver on its
// destination.
//
// Messages leave and arrive in the same order, numbered 0, 1, ... in each pass (`sequence`); `slot`
// is the index of the transfer buffer among those of the edge and side, which the Program hands out
// so that none is used twice at once. Each end is used by its rank's thread alone, save abort(),
// which any thread may call at any time.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "device/lane.h"
#include "device/message.h"

namespace pipert {

// One pass over the channel, as its ends see it.
struct ChannelPass {
  std::int64_t epoch = 0;
  bool training = true;
  int num_messages = 0;  // that cross this edge in the pass
};

class Sender {
 public:
  virtual ~Sender() = default;

  // Before the pass's first message. No thread is inside the channel.
  virtual void begin(const ChannelPass& pass) = 0;
  // Sends without waiting for the receiver. `lane` has done, or will do, what the tensors need.
  virtual void send(int sequence, int slot, Message message, Lane& lane) = 0;
  // Waits until the peer has what was last sent from `slot`. False if the channel was aborted.
  virtual bool release(int sequence, int slot) = 0;
  // Ends all waits on this end, now and until reset().
  virtual void abort() noexcept = 0;
  // Makes the end usable again. False where that is impossible and the channel must be built anew.
  virtual bool reset() noexcept = 0;
  virtual std::string_view kind() const = 0;  // "local", "process_group"
};

class Receiver {
 public:
  virtual ~Receiver() = default;

  virtual void begin(const ChannelPass& pass) = 0;
  // Makes `slot` ready to take message `sequence`; doesn't wait.
  virtual void post(int sequence, int slot) = 0;
  // Waits until message `sequence` is here and hands it over, with its tensors on this rank's
  // device and ordered before what `lane` is given from now on. Nothing if the channel was aborted.
  // Throws ValueError for a message that isn't the expected one.
  virtual std::optional<Message> take(int sequence, int slot, Lane& lane) = 0;
  virtual void abort() noexcept = 0;
  virtual bool reset() noexcept = 0;
  virtual std::string_view kind() const = 0;
};

// Throws ValueError unless `message` is the one that this pass, of this epoch and kind, expects.
void check_arrival(const Message& message, const MessageKey& expected, std::int64_t epoch,
                   bool training);

}  // namespace pipert
