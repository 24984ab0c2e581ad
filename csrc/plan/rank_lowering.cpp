#include "plan/rank_lowering.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <map>
#include <queue>
#include <utility>
#include <vector>

#include "analysis/activations.h"
#include "base/index.h"
#include "plan/incoming.h"
#include "plan/slot_pool.h"

namespace pipert {
namespace {

constexpr int kNoRun = -1;

// One edge that comes in.
struct Receiving {
  Incoming incoming;
  LaneId lane = 0;
  SlotPool::Group slots = 0;
};

// One edge that goes out.
struct Sending {
  LaneId lane = 0;
  SlotPool::Group slots = 0;
  int num_on_their_way = 0;  // sent, not released
  // The Runs whose results were sent, by the Run that reads them; those that were released come out
  // at the top. Only kept where Sends may have to wait.
  using Sent = std::pair<int, int>;  // (position of the reader, of the Run here)
  std::priority_queue<Sent, std::vector<Sent>, std::greater<>> by_reader;
};

// What a Run made, until its reader has it.
struct Result {
  SlotId slot = 0;
  MarkId made = kNoMark;  // of the Run
  // Where the reader is on another rank:
  MarkId sent = kNoMark;
  bool is_released = false;
  int next_release =
      kNoRun;  // the Run whose result is released after the same Run, behind this one
};

// Activations that go to the host: the marks of what happened to them last.
struct Moved {
  MarkId forward_ran = kNoMark;
  MarkId offloaded = kNoMark;
  MarkId reloaded = kNoMark;  // none again once a Run has waited for it
};

bool is_move(const Action& action) {
  return action.kind == ActionKind::kOffload || action.kind == ActionKind::kReload;
}

struct SlotState {
  MarkId emptied_by = kNoMark;         // of a receive slot: the Run that emptied it last
  std::ptrdiff_t released_early = -1;  // of a send slot: the Release that may have had to wait
};

class RankLowering {
 public:
  RankLowering(const Dataflow& dataflow, const Clocks& clocks, Rank rank,
               const LowerOptions& options)
      : dataflow_(dataflow),
        clocks_(clocks),
        options_(options),
        rank_(rank),
        num_runs_(static_cast<int>(dataflow.runs(rank).size())),
        results_(as_index(num_runs_)),
        first_release_(as_index(num_runs_) + 1, kNoRun) {
    program_.rank = rank;
    program_.num_ranks = dataflow.num_ranks();
    add_lane(LaneKind::kCompute, {rank, rank});
    local_slots_ = slots_.add_group(SlotKind::kLocal, {rank, rank});
    open_receives();
    open_sends();
    open_moves();
    plan_releases();
    program_.instructions.reserve(num_instructions_);
  }

  Program build() && {
    for (auto& [source, receiving] : receiving_) post_receives(receiving);
    for (int begin = 0, end = 0; begin < num_runs_; begin = end) {
      const bool is_pair = dataflow_.begins_pair(at(begin));
      end = begin + (is_pair ? 2 : 1);
      if (is_pair) program_.joint_pairs.push_back(program_.instructions.size());
      for (int position = begin; position < end; ++position) emit(position);
      for (int position = begin; position < end; ++position) emit_send(position);
      for (int position = begin; position < end; ++position) {
        const Place producer = dataflow_.producer_of(at(position));
        if (crosses(producer)) post_receives(receiving_.at(producer.rank));
        emit_releases(position);
      }
    }
    emit_releases(num_runs_);
    count_activations();
    program_.slots = std::move(slots_).slots();
    return std::move(program_);
  }

 private:
  Place at(int position) const { return {rank_, position}; }
  bool crosses(Place other) const { return other.exists() && other.rank != rank_; }
  MarkId new_mark() { return program_.num_marks++; }

  SlotState& state(SlotId slot) {
    slot_states_.resize(slots_.size());
    return slot_states_[as_index(slot)];
  }

  LaneId add_lane(LaneKind kind, const Edge& edge) {
    program_.lanes.push_back({kind, edge});
    return static_cast<LaneId>(program_.lanes.size()) - 1;
  }

  void open_receives() {
    for (int position = 0; position < num_runs_; ++position) {
      const Place producer = dataflow_.producer_of(at(position));
      ++num_instructions_;
      if (!crosses(producer)) continue;
      ++num_instructions_;
      const auto entry =
          receiving_.try_emplace(producer.rank, Receiving{Incoming(options_.receive_slots)}).first;
      entry->second.incoming.add(dataflow_.sequence_of(producer), dataflow_.message_of(producer));
    }
    for (auto& [source, receiving] : receiving_) {
      receiving.lane = add_lane(LaneKind::kReceive, {source, rank_});
      receiving.slots = slots_.add_group(SlotKind::kReceive, {source, rank_});
    }
  }

  void open_sends() {
    for (int position = 0; position < num_runs_; ++position) {
      const Place consumer = dataflow_.consumer_of(at(position));
      if (!crosses(consumer)) continue;
      num_instructions_ += 2;
      const auto [entry, is_new] = sending_.try_emplace(consumer.rank);
      if (!is_new) continue;
      entry->second.lane = add_lane(LaneKind::kSend, {rank_, consumer.rank});
      entry->second.slots = slots_.add_group(SlotKind::kSend, {rank_, consumer.rank});
    }
  }

  void open_moves() {
    for (const Action& action : dataflow_.runs(rank_)) {
      if (action.kind == ActionKind::kOffload) moved_[as_kind(action, ActionKind::kForward)] = {};
    }
    if (moved_.empty()) return;
    offload_lane_ = add_lane(LaneKind::kOffload, {rank_, rank_});
    reload_lane_ = add_lane(LaneKind::kReload, {rank_, rank_});
  }

  // Null if they stay where they are.
  Moved* moved_of(const Action& action) {
    if (moved_.empty()) return nullptr;
    const auto found = moved_.find(as_kind(action, ActionKind::kForward));
    return found == moved_.end() ? nullptr : &found->second;
  }

  // Results that are released after the same Run are so in the order in which they were sent.
  void plan_releases() {
    for (int position = num_runs_ - 1; position >= 0; --position) {
      const Place consumer = dataflow_.consumer_of(at(position));
      if (!crosses(consumer)) continue;
      int& first = first_release_[as_index(clocks_.known_received(at(position), consumer))];
      results_[as_index(position)].next_release = std::exchange(first, position);
    }
  }

  void post_receives(Receiving& receiving) {
    Incoming& incoming = receiving.incoming;
    while (incoming.can_post()) {
      const SlotId slot = slots_.take(receiving.slots);
      Instruction instruction{
          .op = Recv{}, .lane = receiving.lane, .waits = {}, .mark = new_mark()};
      const int sequence = incoming.post(slot, instruction.mark);
      instruction.op = Recv{incoming.message(sequence), sequence, slot};
      const MarkId emptied = state(slot).emptied_by;
      if (emptied != kNoMark) instruction.waits.push_back(emptied);
      program_.instructions.push_back(instruction);
    }
  }

  void emit(int position) {
    const Action& action = dataflow_.run(at(position));
    if (is_move(action)) {
      emit_move(action);
    } else {
      emit_run(position);
    }
  }

  void emit_run(int position) {
    Run run{.action = dataflow_.run(at(position)), .reads = {}, .writes = {}};
    Instruction instruction{.op = Run{}, .lane = kComputeLane, .waits = {}, .mark = kNoMark};
    const Place producer = dataflow_.producer_of(at(position));
    Moved* const moved = moved_of(run.action);
    const bool is_forward = run.action.kind == ActionKind::kForward;
    bool is_awaited = moved != nullptr && is_forward;
    if (crosses(producer)) {
      Incoming& incoming = receiving_.at(producer.rank).incoming;
      const Incoming::Held held = incoming.take(dataflow_.sequence_of(producer));
      run.reads.push_back({held.slot});
      instruction.waits.push_back(held.arrival);
      is_awaited |= incoming.has_more();
    } else if (producer.exists()) {
      const SlotId slot = results_[as_index(producer.position)].slot;
      run.reads.push_back({slot});
      slots_.give_back(slot);
    }
    if (dataflow_.consumer_of(at(position)).exists()) {
      run.writes.push_back(take_slot(position, instruction));
      is_awaited |= crosses(dataflow_.consumer_of(at(position)));
    }
    if (is_awaited) instruction.mark = new_mark();
    if (moved != nullptr && is_forward) moved->forward_ran = instruction.mark;
    // The first that needs them waits; what comes after it on the compute lane needn't.
    if (moved != nullptr && moved->reloaded != kNoMark)
      instruction.waits.push_back(std::exchange(moved->reloaded, kNoMark));
    if (crosses(producer)) {
      state(run.reads.front().slot).emptied_by = instruction.mark;
      slots_.give_back(run.reads.front().slot);
    }
    instruction.op = run;
    results_[as_index(position)].made = instruction.mark;
    program_.instructions.push_back(instruction);
  }

  // An OFFLOAD has its F behind it, a RELOAD its OFFLOAD, and somebody waits for both: verify() has
  // shown it.
  void emit_move(const Action& action) {
    Moved& moved = *moved_of(action);
    const bool leaves = action.kind == ActionKind::kOffload;
    const MarkId done = new_mark();
    program_.instructions.push_back({.op = Move{action},
                                     .lane = leaves ? offload_lane_ : reload_lane_,
                                     .waits = {leaves ? moved.forward_ran : moved.offloaded},
                                     .mark = done});
    (leaves ? moved.offloaded : moved.reloaded) = done;
  }

  // For what the Run makes; it waits for a Release that may be waiting itself.
  SlotId take_slot(int position, Instruction& run) {
    const Place consumer = dataflow_.consumer_of(at(position));
    const SlotId slot =
        slots_.take(crosses(consumer) ? sending_.at(consumer.rank).slots : local_slots_);
    results_[as_index(position)].slot = slot;
    const std::ptrdiff_t early = std::exchange(state(slot).released_early, -1);
    if (early >= 0) {
      Instruction& release = program_.instructions[static_cast<std::size_t>(early)];
      release.mark = new_mark();
      run.waits.push_back(release.mark);
    }
    return slot;
  }

  void emit_send(int position) {
    const Place consumer = dataflow_.consumer_of(at(position));
    if (!crosses(consumer)) return;
    Sending& sending = sending_.at(consumer.rank);
    if (options_.send_slots.has_value()) {
      if (sending.num_on_their_way >= *options_.send_slots) make_room(sending);
      sending.by_reader.emplace(consumer.position, position);
    }
    ++sending.num_on_their_way;
    Result& result = results_[as_index(position)];
    result.sent = new_mark();
    program_.instructions.push_back({.op = Send{dataflow_.message_of(at(position)),
                                                dataflow_.sequence_of(at(position)), result.slot},
                                     .lane = sending.lane,
                                     .waits = {result.made},
                                     .mark = result.sent});
  }

  // Waits for the message that is read next, not for the one that was sent first: verify() has
  // shown that the reader comes to it.
  void make_room(Sending& sending) {
    while (results_[as_index(sending.by_reader.top().second)].is_released) sending.by_reader.pop();
    const int position = sending.by_reader.top().second;
    emit_release(position);
    state(results_[as_index(position)].slot).released_early =
        static_cast<std::ptrdiff_t>(program_.instructions.size()) - 1;
  }

  // Those that the other rank is known to have after this Run.
  void emit_releases(int after) {
    for (int position = first_release_[as_index(after)]; position != kNoRun;
         position = results_[as_index(position)].next_release) {
      if (!results_[as_index(position)].is_released) emit_release(position);
    }
  }

  void emit_release(int position) {
    Result& result = results_[as_index(position)];
    Sending& sending = sending_.at(dataflow_.consumer_of(at(position)).rank);
    program_.instructions.push_back(
        {.op = Release{dataflow_.message_of(at(position)), dataflow_.sequence_of(at(position)),
                       result.slot},
         .lane = sending.lane,
         .waits = {result.sent},
         .mark = kNoMark});
    slots_.give_back(result.slot);
    result.is_released = true;
    --sending.num_on_their_way;
  }

  void count_activations() {
    Activations activations;
    for (const Action& action : dataflow_.runs(rank_)) activations.expect(action);
    double peak = 0.0;
    for (const Action& action : dataflow_.runs(rank_))
      peak = std::max(peak, activations.run(action, ActivationSize{}));
    program_.peak_activations = static_cast<int>(std::lround(peak));
  }

  const Dataflow& dataflow_;
  const Clocks& clocks_;
  const LowerOptions& options_;
  Rank rank_;
  int num_runs_;
  Program program_;
  std::size_t num_instructions_ = 0;
  SlotPool slots_;
  SlotPool::Group local_slots_ = 0;
  std::map<Rank, Receiving> receiving_;  // by source
  std::map<Rank, Sending> sending_;      // by destination
  std::map<Action, Moved> moved_;        // by F
  LaneId offload_lane_ = kComputeLane;   // if anything is moved, as the next
  LaneId reload_lane_ = kComputeLane;
  std::vector<Result> results_;     // by Run
  std::vector<int> first_release_;  // by Run, and for the end: the first result released after it
  std::vector<SlotState> slot_states_;  // by SlotId
};

}  // namespace

Program lower_rank(const Dataflow& dataflow, const Clocks& clocks, Rank rank,
                   const LowerOptions& options) {
  return RankLowering(dataflow, clocks, rank, options).build();
}

}  // namespace pipert
