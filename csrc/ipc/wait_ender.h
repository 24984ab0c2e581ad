// WaitEnder: ends the waits of this process's streams for some words, when it is told to, or
// when the other end has left work undone or its process is gone.
//
// A thread of its own looks for that: nobody else would, while a step's host part is over and its
// streams still wait. It writes the words again and again, since what the other end's streams
// were given before may still come and write a smaller number over it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "ipc/push_board.h"

namespace pipert {

class WaitEnder {
 public:
  // `own` and `other` are ends of one board; `words` are what this end's streams wait for.
  WaitEnder(std::span<PushWord> words, std::uint32_t first_number, PushEnd& own,
            const PushEnd& other);
  // Tells the other end that this one has closed.
  ~WaitEnder();
  WaitEnder(const WaitEnder&) = delete;
  WaitEnder& operator=(const WaitEnder&) = delete;

  // Waits for numbers up to this one may be given to streams from now on.
  void expect(std::uint32_t number) { number_.store(number); }
  // Any thread. For good.
  void end_waits() noexcept;
  // A word that was read before this was false came from the other end.
  bool has_ended() const { return has_ended_.load(); }
  // Tells the other end that it may wait for what will never come.
  void leave_undone() noexcept { own_.has_left_undone.store(1); }

 private:
  bool is_other_gone() const;
  void run();
  void write() noexcept;

  std::span<PushWord> words_;
  PushEnd& own_;
  const PushEnd& other_;
  std::atomic<std::uint32_t> number_;
  std::atomic<bool> has_ended_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_closed_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace pipert
