#include "plan/blind_lowering.h"

#include <array>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// Where each message leaves, by edge: its places among all that the edge carries.
using Departures = std::map<std::pair<Edge, MessageKey>, std::vector<int>>;

class Wiring {
 public:
  explicit Wiring(const Schedule& schedule) : placement_(schedule.placement) {}

  // What the action reads from another stage, if it reads anything. An action away from its stage's
  // rank reads and makes nothing: no Executor takes it.
  std::optional<MessageKey> input(const Action& action, Rank rank) const {
    const auto kind = result_kind(action.kind);
    if (!kind || !is_at_home(action, rank)) return std::nullopt;
    const bool down = *kind == MessageKind::kActivation;
    if (down ? placement_.is_first(action.stage) : placement_.is_last(action.stage))
      return std::nullopt;
    return MessageKey{*kind, action.stage + (down ? -1 : 1), action.microbatch};
  }

  // What it makes that another stage reads.
  std::optional<MessageKey> result(const Action& action, Rank rank) const {
    const auto kind = result_kind(action.kind);
    if (!kind || !is_at_home(action, rank)) return std::nullopt;
    const bool down = *kind == MessageKind::kActivation;
    if (down ? placement_.is_last(action.stage) : placement_.is_first(action.stage))
      return std::nullopt;
    return MessageKey{*kind, action.stage, action.microbatch};
  }

  Rank maker_of(const MessageKey& message) const { return placement_.rank_of(message.stage); }
  Rank reader_of(const MessageKey& message) const {
    return placement_.rank_of(neighbour_of(message));
  }

  // All that the placement asks for, whether the schedule uses them or not.
  std::set<Edge> edges() const {
    std::set<Edge> edges;
    for (StageIndex stage = 0; stage < placement_.num_stages(); ++stage) {
      if (placement_.is_last(stage)) continue;
      const Rank here = placement_.rank_of(stage);
      const Rank next = placement_.rank_of(stage + 1);
      if (here != next) edges.insert({{here, next}, {next, here}});
    }
    return edges;
  }

 private:
  bool is_at_home(const Action& action, Rank rank) const {
    const StageIndex stage = action.stage;
    return stage >= 0 && stage < placement_.num_stages() && placement_.rank_of(stage) == rank;
  }

  const Placement& placement_;
};

Departures departures_of(const Schedule& schedule, const Wiring& wiring) {
  Departures departures;
  std::map<Edge, int> counts;
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    for (const Action& action : schedule.ranks[as_index(rank)]) {
      const auto message = wiring.result(action, rank);
      if (!message || wiring.reader_of(*message) == rank) continue;
      const Edge edge{rank, wiring.reader_of(*message)};
      departures[{edge, *message}].push_back(counts[edge]++);
    }
  }
  return departures;
}

bool is_move(ActionKind kind) {
  return kind == ActionKind::kOffload || kind == ActionKind::kReload;
}

bool can_run(const Action& action) {
  const ActionKind kind = action.kind;
  const bool known = (is_compute(kind) && kind != ActionKind::kOverlap) || is_move(kind);
  return known && action.slice == kWholeSequence && action.version == 0;
}

class BlindRank {
  static constexpr LaneId kOffloadLane = 1;
  static constexpr LaneId kReloadLane = 2;

 public:
  BlindRank(const Schedule& schedule, const Wiring& wiring, const Departures& departures, Rank rank)
      : wiring_(wiring), departures_(departures), rank_(rank) {
    program_.rank = rank;
    program_.num_ranks = schedule.num_ranks();
    program_.num_stages = schedule.num_stages();
    program_.num_copies = schedule.placement.num_copies();
    program_.num_microbatches = schedule.num_microbatches;
    program_.lanes.push_back({LaneKind::kCompute, {rank, rank}});
    program_.lanes.push_back({LaneKind::kOffload, {rank, rank}});
    program_.lanes.push_back({LaneKind::kReload, {rank, rank}});
    for (const Edge& edge : wiring.edges()) {
      if (edge.destination == rank) add_edge(edge, SlotKind::kReceive, LaneKind::kReceive);
      if (edge.source == rank) add_edge(edge, SlotKind::kSend, LaneKind::kSend);
    }
  }

  // One action, or the two halves of a pair that are run jointly.
  void add(std::span<const Action> actions) {
    std::vector<Run> runs;
    std::vector<Send> sends;
    for (const Action& action : actions) {
      if (is_move(action.kind)) {
        emit(Move{action}, action.kind == ActionKind::kOffload ? kOffloadLane : kReloadLane);
        continue;
      }
      const std::size_t half = runs.size();
      Run& run = runs.emplace_back(Run{.action = action, .reads = {}, .writes = {}});
      if (const auto input = wiring_.input(action, rank_)) run.reads = {{receive(*input, half)}};
      const auto result = wiring_.result(action, rank_);
      if (!result) continue;
      const Edge edge{rank_, wiring_.reader_of(*result)};
      if (edge.destination == rank_) {
        run.writes = {local_slot(*result)};
      } else {
        run.writes = {slots_.at(edge)[half]};
        sends.push_back({*result, num_sent_[edge]++, slots_.at(edge)[half]});
      }
    }
    if (runs.size() == 2) program_.joint_pairs.push_back(program_.instructions.size());
    for (Run& run : runs) emit(std::move(run), kComputeLane);
    for (const Send& send : sends) {
      emit(send, lanes_.at(program_.slots[as_index(send.slot)].edge));
    }
  }

  Program take() { return std::move(program_); }

 private:
  void add_edge(const Edge& edge, SlotKind slot, LaneKind lane) {
    for (int half = 0; half < 2; ++half) {
      slots_[edge][as_index(half)] = static_cast<SlotId>(program_.slots.size());
      program_.slots.push_back({slot, edge, half});
    }
    lanes_[edge] = static_cast<LaneId>(program_.lanes.size());
    program_.lanes.push_back({lane, edge});
  }

  SlotId local_slot(const MessageKey& message) {
    const auto [entry, is_new] =
        local_.try_emplace(message, static_cast<SlotId>(program_.slots.size()));
    const int index = static_cast<int>(local_.size()) - 1;
    if (is_new) program_.slots.push_back({SlotKind::kLocal, {rank_, rank_}, index});
    return entry->second;
  }

  SlotId receive(const MessageKey& message, std::size_t half) {
    const Edge edge{wiring_.maker_of(message), rank_};
    if (edge.source == rank_) return local_slot(message);
    const auto found = departures_.find({edge, message});
    const std::size_t nth = num_read_[message]++;
    int sequence = kMaxIndex;  // never comes
    if (found != departures_.end() && nth < found->second.size()) sequence = found->second[nth];
    const SlotId slot = slots_.at(edge)[half];
    emit(Recv{message, sequence, slot}, lanes_.at(edge));
    return slot;
  }

  template <typename Typed>
  void emit(Typed op, LaneId lane) {
    program_.instructions.push_back({.op = std::move(op), .lane = lane, .waits = {}});
  }

  const Wiring& wiring_;
  const Departures& departures_;
  Rank rank_;
  Program program_;
  std::map<Edge, std::array<SlotId, 2>> slots_;  // by half of a pair
  std::map<Edge, LaneId> lanes_;
  std::map<MessageKey, SlotId> local_;
  std::map<MessageKey, std::size_t> num_read_;
  std::map<Edge, int> num_sent_;
};

void require_runs(const std::vector<Action>& actions) {
  for (const Action& action : actions) {
    if (can_run(action)) continue;
    throw ValueError(concat(
        "expected F, B, I, W, R, OFFLOAD and RELOAD of whole sequences and of version 0, got ",
        to_string(action)));
  }
}

}  // namespace

std::vector<Program> lower_blindly(const Schedule& schedule, bool joint_pairs) {
  if (schedule.num_ranks() != schedule.placement.num_ranks()) {
    throw ValueError(concat("the placement is for ", schedule.placement.num_ranks(),
                            " ranks, the schedule has ", schedule.num_ranks()));
  }
  if (schedule.num_microbatches < 1) {
    throw ValueError(
        concat("num_microbatches must be at least 1, got ", schedule.num_microbatches));
  }
  const Schedule apart = split_overlaps(schedule);
  const Wiring wiring(apart);
  const Departures departures = departures_of(apart, wiring);
  std::vector<Program> programs;
  for (Rank rank = 0; rank < apart.num_ranks(); ++rank) {
    require_runs(apart.ranks[as_index(rank)]);
    BlindRank blind(apart, wiring, departures, rank);
    std::span<const Action> rest = apart.ranks[as_index(rank)];
    for (const Action& given : schedule.ranks[as_index(rank)]) {
      const bool is_pair = given.kind == ActionKind::kOverlap;
      if (is_pair && joint_pairs && can_run_jointly(given)) {
        blind.add(rest.first(2));
      } else {
        for (const Action& action : rest.first(is_pair ? 2 : 1)) blind.add({&action, 1});
      }
      rest = rest.subspan(is_pair ? 2 : 1);
    }
    programs.push_back(blind.take());
  }
  return programs;
}

}  // namespace pipert
