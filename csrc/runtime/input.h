// Input: where a Run takes a message from that it reads.
#pragma once

#include "base/ids.h"
#include "transport/channel.h"

namespace pipert {

struct Input {
  Receiver* receiver = nullptr;  // null: from local slot `slot`, or nowhere if that is -1
  Lane* lane = nullptr;          // the receive lane of the edge
  MessageKey key;                // of what it reads
  Rank source = 0;               // where that was made
  int sequence = 0;
  int slot = -1;
  int posted = -1;  // the instruction that posted the receive; -1: none did
};

}  // namespace pipert
