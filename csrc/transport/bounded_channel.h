// The ends of a channel that holds only so many messages: a send that finds it full waits, as
// verify() takes it to (Note [How a schedule is taken to run]).
#pragma once

#include <memory>

#include "transport/channel.h"

namespace pipert {

struct BoundedChannel {
  std::unique_ptr<Sender> sender;
  std::unique_ptr<Receiver> receiver;
};

// `sender` and `receiver`: the ends of one channel, which do the work. `capacity`: messages that
// were sent and not taken; 0: a send waits until its message is taken. Unlike other senders, this
// one waits, and throws ValueError if the channel is aborted meanwhile.
BoundedChannel bound_channel(std::unique_ptr<Sender> sender, std::unique_ptr<Receiver> receiver,
                             int capacity);

}  // namespace pipert
