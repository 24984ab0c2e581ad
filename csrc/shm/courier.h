// Courier: brings messages to a ring that has no room for them at once, in pieces.
//
// Who sends must not wait: two ranks that send to each other would wait for ever. So a thread waits
// instead, which is started for the first such message. Until it is done, all messages go through
// it, so that they keep their order.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "shm/ring_writer.h"

namespace pipert {

// Used by one thread, the ring's writer.
class Courier {
 public:
  struct Parcel {
    std::unique_ptr<char[]> bytes;
    std::size_t num_bytes = 0;
  };

  explicit Courier(RingWriter& writer) : writer_(writer) {}
  // REQUIRES that the writer is aborted, or everything was delivered.
  ~Courier();

  // Whether it has the ring; else its user may write.
  bool is_busy();
  void bring(Parcel parcel);

 private:
  void run();

  RingWriter& writer_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Parcel> parcels_;  // the first one is on its way
  bool is_closed_ = false;
  std::thread thread_;
};

}  // namespace pipert
