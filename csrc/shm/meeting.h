// Meeting: where the ranks of one host wait for each other, and hear the values that one of them
// brings. A segment with a seat for each rank; the others open what one of them has made.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <vector>

#include "shm/segment.h"

namespace pipert {

// A segment for `num_ranks` ranks that bring at most `max_values` values each. SegmentError if it
// can't be had.
std::unique_ptr<Segment> make_meeting_segment(int num_ranks, int max_values,
                                              const std::string& folder = "/dev/shm");
// The one that another rank has made; it keeps its name. SegmentError if it isn't there, is another
// user's, or holds something else.
std::unique_ptr<Segment> open_meeting_segment(const std::string& name,
                                              const std::string& folder = "/dev/shm");

// One rank's part. Used by one thread, save abort() and awaited_rank(), which any thread may call.
class Meeting {
 public:
  // SegmentError if the segment is for other ranks.
  Meeting(std::shared_ptr<Segment> segment, int rank, int num_ranks, int max_values,
          std::chrono::microseconds spin);
  // Tells the others.
  ~Meeting();
  Meeting(const Meeting&) = delete;
  Meeting& operator=(const Meeting&) = delete;

  // Waits until all ranks have come as often as this one. Gives `values`, at most max_values; where
  // they are empty, takes those of the rank that has any. False if aborted; ConnectionLost if a
  // rank is gone that hasn't come.
  bool meet(std::vector<double>& values);
  // That hasn't come yet, while this one waits.
  int awaited_rank() const { return awaited_rank_.load(std::memory_order_relaxed); }
  void abort() noexcept;
  // By rank, a number that is for whoever works for the rank to write and for all to read: the core
  // that it is on, -1 at first. They keep the segment.
  std::vector<std::shared_ptr<std::atomic<int>>> cores() const;

 private:
  struct Seat;
  struct Layout;

  Seat& seat(int rank) const;
  // Of the meeting with this number; two that follow each other have different places.
  double* values_of(int rank, std::uint64_t number) const;
  bool wait_for(int rank, std::uint64_t number);
  void look_around(std::uint64_t number);
  void ring_all() noexcept;
  void take_values(std::uint64_t number, std::vector<double>& values) const;

  friend std::unique_ptr<Segment> make_meeting_segment(int, int, const std::string&);
  friend std::unique_ptr<Segment> open_meeting_segment(const std::string&, const std::string&);

  std::shared_ptr<Segment> segment_;  // shared with who removes its name
  int rank_;
  int num_ranks_;
  int max_values_;
  std::chrono::microseconds spin_;
  std::int32_t pid_;  // a fork has the object, and none of the memory
  std::uint64_t number_ = 0;
  std::atomic<int> awaited_rank_{0};
  std::atomic<bool> aborted_{false};
};

}  // namespace pipert
