// interleavings: what can become of small Programs, by trying every order in which lanes and ranks
// may go on. Knows nothing of clocks: for tests of the prover. Programs without joint pairs.
//
// A lane begins its instructions in order; those of transfer lanes may overlap, others don't. A
// Release goes by its marks alone. A message is there when its Send and its Recv have begun and the
// Recv ends, which copies what the slot of the Send holds at that moment.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/index.h"
#include "plan/program.h"

namespace pipert {

enum class Fate : std::uint8_t {
  kRight,  // every order ends, and reads what it should
  kWrong,  // some order uses a slot or activations too early, or reads the wrong message
  kStuck,  // some order doesn't end
};

class Interleavings {
 public:
  // `in_order`: each rank begins its instructions in their order and waits at each but transfers.
  Interleavings(std::span<const Program> programs, bool in_order)
      : programs_(programs), in_order_(in_order) {
    for (const Program& program : programs) lay_out(program);
  }

  Fate fate() {
    std::string start(2 * lanes_.size() + num_slots_, 0);
    std::vector<std::string> open = {start};
    seen_.insert(start);
    while (!open.empty()) {
      const std::string state = open.back();
      open.pop_back();
      bool is_over = true;
      bool moves = false;
      for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
        is_over &= count(state, lane, kDone) == lanes_[lane].size();
        for (const Half half : {kBegun, kDone}) {
          auto next = half == kBegun ? begin(state, lane) : end(state, lane);
          if (is_wrong_) return Fate::kWrong;
          if (!next) continue;
          moves = true;
          if (seen_.insert(*next).second) open.push_back(std::move(*next));
        }
      }
      if (!is_over && !moves) return Fate::kStuck;
    }
    return Fate::kRight;
  }
  std::size_t num_states() const { return seen_.size(); }

 private:
  enum Half : std::size_t { kBegun, kDone };
  struct At {  // an instruction
    Rank rank = 0;
    std::size_t index = 0;
    std::size_t lane = 0;      // among all lanes
    std::size_t position = 0;  // on it
  };
  using State = std::string;

  void lay_out(const Program& program) {
    const std::size_t first = lanes_.size();
    lanes_.resize(first + program.lanes.size() + 1);  // and one for each Release below
    first_slot_.push_back(num_slots_);
    num_slots_ += program.slots.size();
    auto& places = places_.emplace_back();
    std::size_t releases = first + program.lanes.size();
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
      const Instruction& instruction = program.instructions[i];
      std::size_t lane = first + as_index(instruction.lane);
      if (std::holds_alternative<Release>(instruction.op)) {
        if (!lanes_[releases].empty()) lanes_.resize((releases = lanes_.size()) + 1);
        lane = releases;
      }
      places.push_back({program.rank, i, lane, lanes_[lane].size()});
      lanes_[lane].push_back(places.back());
    }
  }

  static std::size_t count(const State& state, std::size_t lane, Half half) {
    return static_cast<std::uint8_t>(state[2 * lane + half]);
  }
  const Instruction& instruction(const At& at) const {
    return programs_[as_index(at.rank)].instructions[at.index];
  }
  static bool has(const State& state, const At& at, Half half) {
    return count(state, at.lane, half) > at.position;
  }
  static bool is_transfer(const Instruction& instruction) {
    return std::holds_alternative<Send>(instruction.op) ||
           std::holds_alternative<Recv>(instruction.op);
  }
  char& content(State& state, Rank rank, SlotId slot) const {
    return state[2 * lanes_.size() + first_slot_[as_index(rank)] + as_index(slot)];
  }
  static char code(MessageKind kind, StageIndex stage, Microbatch microbatch) {
    return static_cast<char>(1 + (stage * 8 + microbatch) * 2 +
                             (kind == MessageKind::kGradient ? 1 : 0));
  }

  // The Send of a Recv, or the Recv of a Send.
  std::optional<At> peer(const At& at) const {
    const Program& program = programs_[as_index(at.rank)];
    const auto* send = std::get_if<Send>(&instruction(at).op);
    const auto* recv = std::get_if<Recv>(&instruction(at).op);
    const Edge edge = program.slots[as_index(send ? send->slot : recv->slot)].edge;
    const int sequence = send ? send->sequence : recv->sequence;
    for (const At& other : places_[as_index(send ? edge.destination : edge.source)]) {
      const auto* sent = std::get_if<Send>(&instruction(other).op);
      const auto* received = std::get_if<Recv>(&instruction(other).op);
      const auto& slots = programs_[as_index(other.rank)].slots;
      if (send && received && received->sequence == sequence &&
          slots[as_index(received->slot)].edge == edge)
        return other;
      if (recv && sent && sent->sequence == sequence && slots[as_index(sent->slot)].edge == edge)
        return other;
    }
    return std::nullopt;
  }

  bool is_set(const State& state, Rank rank, MarkId mark) const {
    for (const At& at : places_[as_index(rank)]) {
      if (instruction(at).mark == mark) return has(state, at, kDone);
    }
    return false;
  }

  static std::vector<SlotId> slots_of(const Instruction& instruction) {
    std::vector<SlotId> slots;
    if (const auto* run = std::get_if<Run>(&instruction.op)) {
      slots.assign(run->reads.begin(), run->reads.end());
      slots.insert(slots.end(), run->writes.begin(), run->writes.end());
    }
    if (const auto* recv = std::get_if<Recv>(&instruction.op)) slots = {recv->slot};
    if (const auto* send = std::get_if<Send>(&instruction.op)) slots = {send->slot};
    return slots;
  }

  static const Action* action_of(const Instruction& instruction) {
    if (const auto* run = std::get_if<Run>(&instruction.op)) return &run->action;
    if (const auto* move = std::get_if<Move>(&instruction.op)) return &move->action;
    return nullptr;
  }

  // A Send holds its slot until the message is there.
  bool holds_slots(const State& state, const At& at) const {
    if (!has(state, at, kBegun)) return false;
    if (!std::holds_alternative<Send>(instruction(at).op)) return !has(state, at, kDone);
    const auto other = peer(at);
    return !other || !has(state, *other, kDone);
  }

  // Whether somebody uses what `at` would use.
  bool clashes(const State& state, const At& at) const {
    const Action* action = action_of(instruction(at));
    for (const At& other : places_[as_index(at.rank)]) {
      if (other.index == at.index) continue;
      const Action* earlier = action_of(instruction(other));
      const bool is_same = action && earlier && earlier->stage == action->stage &&
                           earlier->microbatch == action->microbatch;
      if (is_same && other.index < at.index && !has(state, other, kDone)) return true;
      if (!holds_slots(state, other)) continue;
      for (const SlotId slot : slots_of(instruction(at))) {
        for (const SlotId held : slots_of(instruction(other))) {
          if (slot == held) return true;
        }
      }
    }
    return false;
  }

  std::optional<State> begin(const State& state, std::size_t lane) {
    const std::size_t next = count(state, lane, kBegun);
    if (next == lanes_[lane].size()) return std::nullopt;
    const At& at = lanes_[lane][next];
    const Instruction& here = instruction(at);
    if (!is_transfer(here) && count(state, lane, kDone) != next) return std::nullopt;
    for (const MarkId mark : here.waits) {
      if (!is_set(state, at.rank, mark)) return std::nullopt;
    }
    for (const At& earlier : places_[as_index(at.rank)]) {
      if (!in_order_ || earlier.index >= at.index) break;
      if (!is_transfer(instruction(earlier)) && !has(state, earlier, kDone)) return std::nullopt;
    }
    is_wrong_ |= clashes(state, at);
    State after = state;
    ++after[2 * lane + kBegun];
    if (const auto* run = std::get_if<Run>(&here.op)) {
      for (const SlotId slot : run->reads) {
        const bool forward = run->action.kind == ActionKind::kForward;
        const MessageKind kind = forward ? MessageKind::kActivation : MessageKind::kGradient;
        const StageIndex from = run->action.stage + (forward ? -1 : 1);
        char& held = content(after, at.rank, slot);
        is_wrong_ |= held != code(kind, from, run->action.microbatch);
        held = 0;
      }
    }
    return after;
  }

  std::optional<State> end(const State& state, std::size_t lane) {
    const std::size_t next = count(state, lane, kDone);
    if (next == count(state, lane, kBegun)) return std::nullopt;
    const At& at = lanes_[lane][next];
    State after = state;
    if (const auto* run = std::get_if<Run>(&instruction(at).op)) {
      const bool forward = run->action.kind == ActionKind::kForward;
      for (const SlotId slot : run->writes) {
        content(after, at.rank, slot) =
            code(forward ? MessageKind::kActivation : MessageKind::kGradient, run->action.stage,
                 run->action.microbatch);
      }
    } else if (const auto* recv = std::get_if<Recv>(&instruction(at).op)) {
      const auto sender = peer(at);
      if (!sender || !has(state, *sender, kBegun)) return std::nullopt;
      const SlotId from = std::get<Send>(instruction(*sender).op).slot;
      content(after, at.rank, recv->slot) = content(after, sender->rank, from);
    } else if (std::holds_alternative<Send>(instruction(at).op)) {
      const auto receiver = peer(at);
      if (!receiver || !has(state, *receiver, kDone)) return std::nullopt;
    }
    ++after[2 * lane + kDone];
    return after;
  }

  std::span<const Program> programs_;
  bool in_order_;
  bool is_wrong_ = false;
  std::vector<std::vector<At>> lanes_;   // of all ranks
  std::vector<std::vector<At>> places_;  // by rank and instruction
  std::vector<std::size_t> first_slot_;  // by rank
  std::size_t num_slots_ = 0;
  std::unordered_set<State> seen_;
};

}  // namespace pipert
