#include "plan/send_room.h"

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "analysis/walk.h"
#include "base/index.h"

namespace pipert {
namespace {

// Each rank goes through steps: a Run takes what it reads, then each of its messages is sent. The
// halves of a joint pair both take before either sends.
class SendRoom {
 public:
  SendRoom(const Dataflow& dataflow, int send_slots)
      : dataflow_(dataflow), send_slots_(as_index(send_slots)) {
    const auto num_ranks = as_index(dataflow.num_ranks());
    steps_.resize(num_ranks);
    taken_.resize(num_ranks);
    sent_.resize(num_ranks);
    done_.resize(num_ranks);
    for (Rank rank = 0; rank < dataflow.num_ranks(); ++rank) lay_out(rank);
  }

  bool do_all_end() {
    std::vector<int> num_steps;
    for (const auto& steps : steps_) num_steps.push_back(static_cast<int>(steps.size()));
    const auto done = walk(
        num_steps,
        [&](Rank rank, int step) {
          const Step& at = steps_[as_index(rank)][as_index(step)];
          return at.sends == kNoDelivery ? take_wait({rank, at.position}) : room_wait(at.sends);
        },
        [&](Rank rank, int step) { done_[as_index(rank)] = step + 1; });
    return done == num_steps;
  }

 private:
  struct Step {
    int position = 0;
    DeliveryId sends = kNoDelivery;  // none: the Run takes what it reads
  };

  void lay_out(Rank rank) {
    const int num_runs = static_cast<int>(dataflow_.runs(rank).size());
    for (int begin = 0, end = 0; begin < num_runs; begin = end) {
      end = begin + (dataflow_.begins_pair({rank, begin}) ? 2 : 1);
      for (int position = begin; position < end; ++position) add_take({rank, position});
      for (int position = begin; position < end; ++position) add_sends({rank, position});
    }
  }

  int num_steps(Rank rank) const { return static_cast<int>(steps_[as_index(rank)].size()); }

  void add_take(Place run) {
    steps_[as_index(run.rank)].push_back({.position = run.position});
    taken_[as_index(run.rank)].push_back(num_steps(run.rank));
    for (const DeliveryId id : dataflow_.reads_of(run)) {
      const Delivery& delivery = dataflow_.delivery(id);
      if (delivery.crosses()) takes_[{delivery.writer.rank, run.rank}].push_back(run.position);
    }
  }

  void add_sends(Place run) {
    DeliveryId id = dataflow_.first_write(run);
    for (const Delivery& delivery : dataflow_.writes_of(run)) {
      if (delivery.crosses()) steps_[as_index(run.rank)].push_back({run.position, id});
      sent_[as_index(run.rank)].push_back(num_steps(run.rank));
      ++id;
    }
  }

  std::optional<Wait> unless_done(const Wait& wait) const {
    return done_[as_index(wait.rank)] < wait.steps ? std::optional(wait) : std::nullopt;
  }

  std::optional<Wait> take_wait(Place run) const {
    for (const DeliveryId id : dataflow_.reads_of(run)) {
      const Delivery& delivery = dataflow_.delivery(id);
      if (!delivery.crosses()) continue;
      const Rank source = delivery.writer.rank;
      const DeliveryId own = id - dataflow_.first_write({source, 0});
      const auto wait = unless_done({source, sent_[as_index(source)][as_index(own)]});
      if (wait) return wait;
    }
    return std::nullopt;
  }

  // Messages are taken in the reader's order, so one has room once as many were taken as are before
  // it, but for those that may be on their way.
  std::optional<Wait> room_wait(DeliveryId id) const {
    const Delivery& delivery = dataflow_.delivery(id);
    const auto num_before = as_index(delivery.sequence);
    if (num_before < send_slots_) return std::nullopt;
    const Rank destination = delivery.reader.rank;
    const auto& takes = takes_.at({delivery.writer.rank, destination});
    const int position = takes[num_before - send_slots_];
    return unless_done({destination, taken_[as_index(destination)][as_index(position)]});
  }

  const Dataflow& dataflow_;
  std::size_t send_slots_;
  std::vector<std::vector<Step>> steps_;    // by rank
  std::vector<std::vector<int>> taken_;     // by rank and Run: its steps when the Run has taken
  std::vector<std::vector<int>> sent_;      // by rank and delivery of its results: when it is sent
  std::map<Edge, std::vector<int>> takes_;  // the positions of Runs that read, one a message
  std::vector<int> done_;                   // by rank: steps
};

}  // namespace

bool has_send_room(const Dataflow& dataflow, int send_slots) {
  return SendRoom(dataflow, send_slots).do_all_end();
}

}  // namespace pipert
