// Sending: the messages that leave one rank: their lanes, their slots, and when each slot is free
// again.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

#include "plan/clocks.h"
#include "plan/dataflow.h"
#include "plan/program_builder.h"

namespace pipert {

class Sending {
 public:
  // Adds the lanes. `send_slots`: see LowerOptions. All arguments outlive this.
  Sending(const Dataflow& dataflow, const Clocks& clocks, Rank rank, std::optional<int> send_slots,
          ProgramBuilder& builder);

  std::size_t num_messages() const { return num_messages_; }

  // For what the `position`-th Run makes, the instruction `run`; it waits for a Release that may be
  // waiting itself.
  SlotId take_slot(int position, Instruction& run);
  // Sends it once `made` is set.
  void send(int position, MarkId made);
  // Those that the other rank is known to have after the `after`-th Run.
  void release(int after);

 private:
  static constexpr int kNoRun = -1;

  // One edge that goes out.
  struct OutEdge {
    LaneId lane = 0;
    SlotPool::Group slots = 0;
    int num_on_their_way = 0;  // sent, not released
    // The Runs whose results were sent, by the Run that reads them; those that were released come
    // out at the top. Only kept where Sends may have to wait.
    using Sent = std::pair<int, int>;  // (position of the reader, of the Run here)
    std::priority_queue<Sent, std::vector<Sent>, std::greater<>> by_reader;
  };

  // What a Run made, until its reader has it.
  struct Result {
    SlotId slot = 0;
    MarkId sent = kNoMark;
    bool is_released = false;
    int next_release =
        kNoRun;  // the Run whose result is released after the same Run, behind this one
  };

  OutEdge& edge_of(int position);
  void plan_releases(const Clocks& clocks);
  void make_room(OutEdge& edge);
  void release_result(int position);

  const Dataflow& dataflow_;
  Rank rank_;
  std::optional<int> send_slots_;
  ProgramBuilder& builder_;
  std::map<Rank, OutEdge> edges_;   // by destination
  std::vector<Result> results_;     // by Run
  std::vector<int> first_release_;  // by Run, and for the end: the first result released after it
  std::size_t num_messages_ = 0;
};

}  // namespace pipert
