// interleavings: what can become of small Programs, by trying every order in which lanes and ranks
// may go on. Knows nothing of clocks: for tests of the prover.
//
// A lane begins its instructions in order; those of transfer lanes may overlap, others don't. A
// Release goes by its marks alone. The halves of a joint pair begin together, and take out what
// both read; what follows on their lane begins when both are done. A message is there when its Send
// and its Recv have begun and the Recv ends, which copies what the slot of the Send holds at that
// moment.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "program_layout.h"

namespace pipert {

enum class Fate : std::uint8_t {
  kRight,  // every order ends, and reads what it should
  kWrong,  // some order uses a slot or activations too early, or reads the wrong message
  kStuck,  // some order doesn't end
  kVast,   // there are more states than were asked for
};

class Interleavings {
 public:
  // `in_order`: each rank begins its instructions in their order and waits at each but transfers,
  // and at a Release until its message is read: a channel may take it in no earlier.
  Interleavings(std::span<const Program> programs, bool in_order,
                std::size_t most_states = static_cast<std::size_t>(-1))
      : layout_(programs), in_order_(in_order), most_states_(most_states) {
    for (const Program& program : programs) {
      first_slot_.push_back(num_cells_);
      num_cells_ += program.slots.size();
      first_held_.push_back(num_cells_);
      num_cells_ += as_index(program.num_stages) * as_index(program.num_microbatches);
    }
  }

  Fate fate() {
    const State start(2 * layout_.lanes().size() + num_cells_, 0);
    std::vector<State> open = {start};
    seen_.insert(start);
    while (!open.empty()) {
      if (seen_.size() > most_states_) return Fate::kVast;
      const State state = open.back();
      open.pop_back();
      const std::vector<State> following = next(state);
      if (is_wrong_) return Fate::kWrong;
      if (following.empty() && !is_over(state)) return Fate::kStuck;
      for (const State& each : following) {
        if (seen_.insert(each).second) open.push_back(each);
      }
    }
    return Fate::kRight;
  }
  std::size_t num_states() const { return seen_.size(); }

 private:
  using At = ProgramLayout::At;
  using State = std::string;  // by lane how many have begun and are done, then the cells
  enum Half : std::size_t { kBegun, kDone };
  enum Held : char { kNone, kHere, kOnHost, kHalf, kGone, kInUse };  // activations

  static std::size_t count(const State& state, std::size_t lane, Half half) {
    return static_cast<std::uint8_t>(state[2 * lane + half]);
  }
  bool has(const State& state, const At& at, Half half) const {
    return count(state, at.lane, half) > at.position;
  }
  bool is_over(const State& state) const {
    for (std::size_t lane = 0; lane < layout_.lanes().size(); ++lane) {
      if (count(state, lane, kDone) != layout_.lanes()[lane].size()) return false;
    }
    return true;
  }
  template <typename Typed>
  bool is(const At& at) const {
    return std::holds_alternative<Typed>(layout_.instruction(at).op);
  }
  bool is_transfer(const At& at) const { return is<Send>(at) || is<Recv>(at); }

  std::vector<State> next(const State& state) {
    std::vector<State> all;
    for (std::size_t lane = 0; lane < layout_.lanes().size(); ++lane) {
      for (const Half half : {kBegun, kDone}) {
        const std::size_t at = count(state, lane, half);
        if (at == layout_.lanes()[lane].size()) continue;
        const At& place = layout_.lanes()[lane][at];
        auto after = half == kBegun ? begin(state, place) : end(state, place);
        if (!after) continue;
        // Touches nothing and holds nobody up: no other order shows more.
        if (is<Release>(place) || (is<Send>(place) && half == kDone)) return {*after};
        all.push_back(std::move(*after));
      }
    }
    return all;
  }

  char& content(State& state, Rank rank, SlotId slot) const {
    return state[2 * layout_.lanes().size() + first_slot_[as_index(rank)] + as_index(slot)];
  }
  char& held(State& state, Rank rank, const Action& action) const {
    const int row = action.stage * layout_.program(rank).num_microbatches;
    return state[2 * layout_.lanes().size() + first_held_[as_index(rank)] +
                 as_index(row + action.microbatch)];
  }
  static char code(bool is_activation, StageIndex stage, Microbatch microbatch) {
    return static_cast<char>(1 + (stage * 8 + microbatch) * 2 + (is_activation ? 0 : 1));
  }

  // A Send holds its slot until the message is there.
  bool holds_slots(const State& state, const At& at) const {
    if (!has(state, at, kBegun) || is<Release>(at)) return false;
    const At* other = is<Send>(at) ? layout_.peer(at) : &at;
    return other == nullptr || !has(state, *other, kDone);
  }
  std::vector<SlotId> slots_of(const At& at) const {
    const auto& op = layout_.instruction(at).op;
    std::vector<SlotId> slots;
    if (const auto* run = std::get_if<Run>(&op)) {
      for (const auto& [slot, keeps] : run->reads) {
        slots.push_back(slot);
        if (keeps != kNoSlot) slots.push_back(keeps);
      }
      slots.insert(slots.end(), run->writes.begin(), run->writes.end());
    }
    if (const auto* recv = std::get_if<Recv>(&op)) slots = {recv->slot};
    if (const auto* send = std::get_if<Send>(&op)) slots = {send->slot};
    return slots;
  }
  // Whether somebody uses a slot that `at` would use.
  bool clashes(const State& state, const At& at) const {
    const auto slots = slots_of(at);
    for (const At& other : layout_.places(at.rank)) {
      if (other.index == at.index || !holds_slots(state, other)) continue;
      for (const SlotId slot : slots_of(other)) {
        if (std::find(slots.begin(), slots.end(), slot) != slots.end()) return true;
      }
    }
    return false;
  }

  bool may_begin(const State& state, const At& at) const {
    for (const MarkId mark : layout_.instruction(at).waits) {
      const At* setter = layout_.setter(at.rank, mark);
      if (setter == nullptr || !has(state, *setter, kDone)) return false;
    }
    for (const At& earlier : layout_.places(at.rank)) {
      if (earlier.index >= at.index) break;
      const bool is_partner = at.is_second && earlier.index + 1 == at.index;
      if (is_partner || has(state, earlier, kDone)) continue;
      if (in_order_ && !is_transfer(earlier)) return false;
      if (is<Run>(at) && is<Run>(earlier)) return false;  // the compute lane, both halves of pairs
    }
    if (!in_order_ || !is<Release>(at)) return true;
    const At* recv = layout_.peer(at);
    const At* reader = recv == nullptr ? nullptr : layout_.reader(*recv);
    if (reader == nullptr) return false;
    // The first half of a pair takes its message before the second has its own.
    return has(state, *reader, kBegun) || (!reader->is_second && may_begin(state, *reader));
  }

  std::optional<State> begin(const State& state, const At& at) {
    const bool is_busy = count(state, at.lane, kDone) != count(state, at.lane, kBegun);
    if (at.is_second || (!is_transfer(at) && is_busy)) return std::nullopt;
    const At* second = layout_.second_of(at);
    if (!may_begin(state, at) || (second != nullptr && !may_begin(state, *second)))
      return std::nullopt;
    is_wrong_ |= clashes(state, at) || (second != nullptr && clashes(state, *second));
    State after = state;
    take(after, at);
    if (second != nullptr) take(after, *second);
    return after;
  }

  // Its inputs out of their slots.
  void take(State& state, const At& at) {
    ++state[2 * at.lane + kBegun];
    const auto& op = layout_.instruction(at).op;
    if (const auto* move = std::get_if<Move>(&op)) use(state, at.rank, move->action);
    const auto* run = std::get_if<Run>(&op);
    if (run == nullptr) return;
    use(state, at.rank, run->action);
    const bool forward = run->action.kind == ActionKind::kForward;
    std::vector<char> missing;
    for (const StageIndex from : sources(layout_.program(at.rank), run->action))
      missing.push_back(code(forward, from, run->action.microbatch));
    std::vector<std::pair<SlotId, char>> kept;
    for (const auto& [slot, keeps] : run->reads) {
      char& found = content(state, at.rank, slot);
      is_wrong_ |= std::erase(missing, found) != 1;
      if (keeps != kNoSlot) kept.emplace_back(keeps, found);
      found = 0;
    }
    is_wrong_ |= !missing.empty();
    for (const auto& [slot, message] : kept) content(state, at.rank, slot) = message;
  }

  // The stages whose results the action needs.
  static std::vector<StageIndex> sources(const Program& program, const Action& action) {
    const bool forward = action.kind == ActionKind::kForward;
    if (!forward && action.kind != ActionKind::kBackward && action.kind != ActionKind::kInputGrad)
      return {};
    const int size = program.num_stages / program.num_copies;
    const StageIndex own = action.stage % size;
    const StageIndex copy = action.stage - own;
    std::vector<StageIndex> sources;
    if (forward ? own > 0 : own + 1 < size) sources.push_back(action.stage + (forward ? -1 : 1));
    const StageGraph& graph = program.stage_graph;
    for (const auto& [from, to] : forward ? graph.activations : graph.gradients) {
      if (to == own) sources.push_back(copy + from);
    }
    return sources;
  }
  void use(State& state, Rank rank, const Action& action) {
    char& found = held(state, rank, action);
    is_wrong_ |= found != needed(action.kind);
    found = kInUse;
  }
  static Held needed(ActionKind kind) {
    if (kind == ActionKind::kForward) return kNone;
    if (kind == ActionKind::kReload) return kOnHost;
    return kind == ActionKind::kWeightGrad ? kHalf : kHere;
  }
  static Held left(ActionKind kind) {
    if (kind == ActionKind::kOffload) return kOnHost;
    if (kind == ActionKind::kInputGrad) return kHalf;
    const bool ends = kind == ActionKind::kBackward || kind == ActionKind::kWeightGrad;
    return ends ? kGone : kHere;
  }

  std::optional<State> end(const State& state, const At& at) {
    if (has(state, at, kDone) || !has(state, at, kBegun)) return std::nullopt;
    State after = state;
    const auto& op = layout_.instruction(at).op;
    if (const auto* move = std::get_if<Move>(&op)) {
      held(after, at.rank, move->action) = left(move->action.kind);
    } else if (const auto* run = std::get_if<Run>(&op)) {
      held(after, at.rank, run->action) = left(run->action.kind);
      const bool forward = run->action.kind == ActionKind::kForward;
      for (const SlotId slot : run->writes) {
        content(after, at.rank, slot) = code(forward, run->action.stage, run->action.microbatch);
      }
    } else if (const auto* recv = std::get_if<Recv>(&op)) {
      const At* sender = layout_.peer(at);
      if (sender == nullptr || !has(state, *sender, kBegun)) return std::nullopt;
      const SlotId from = std::get<Send>(layout_.instruction(*sender).op).slot;
      content(after, at.rank, recv->slot) = content(after, sender->rank, from);
    } else if (is<Send>(at)) {
      const At* receiver = layout_.peer(at);
      if (receiver == nullptr || !has(state, *receiver, kDone)) return std::nullopt;
    }
    ++after[2 * at.lane + kDone];
    return after;
  }

  ProgramLayout layout_;
  bool in_order_;
  std::size_t most_states_;
  bool is_wrong_ = false;
  std::vector<std::size_t> first_slot_;  // by rank: where its cells begin
  std::vector<std::size_t> first_held_;
  std::size_t num_cells_ = 0;
  std::unordered_set<State> seen_;
};

}  // namespace pipert
