#include "plan/slot_accesses.h"

#include <algorithm>

#include "base/error.h"

namespace pipert {

MaybeFinding SlotAccesses::take(std::size_t instruction) {
  at_ = instruction;
  return std::visit([&](const auto& op) { return apply(op); },
                    program_.instructions[instruction].op);
}

MaybeFinding SlotAccesses::apply(const Recv& op) { return fill(op.slot, op.message); }

MaybeFinding SlotAccesses::apply(const Run& op) {
  const auto kind = result_kind(op.action.kind);  // F reads its own kind too, and so do B and I
  const MessageKey result{kind.value_or(MessageKind::kActivation), op.action.stage,
                          op.action.microbatch};
  const auto sources =
      kind ? links_.sources(*kind, op.action.stage) : std::span<const StageIndex>();
  if (auto finding = take_inputs(op, result, sources)) return finding;
  if (auto finding = keep(op, result, sources)) return finding;
  for (const SlotId slot : op.writes) {
    if (!kind) return wrong(Flaw::kMessage, slot, "makes no message");
    if (auto finding = fill(slot, result)) return finding;
  }
  return std::nullopt;
}

// All of the sources' messages, in their order.
MaybeFinding SlotAccesses::take_inputs(const Run& op, MessageKey needed,
                                       std::span<const StageIndex> sources) {
  std::size_t num_taken = 0;
  for (const Read& read : op.reads) {
    if (num_taken == sources.size()) {
      const char* text = num_taken == 0 ? "reads no message" : "reads no further message";
      return wrong(Flaw::kMessage, read.slot, text);
    }
    needed.stage = sources[num_taken++];
    if (auto finding = use(read.slot, Phase::kFull, needed)) return finding;
    state(read.slot).phase = Phase::kEmpty;
    state(read.slot).last = at_;
  }
  if (num_taken == sources.size()) return std::nullopt;
  needed.stage = sources[num_taken];
  return find(
      Flaw::kMessage, program_, {at_},
      concat(name_of(program_, at_), ": needs the ", to_string(needed), ", but doesn't read it"));
}

MaybeFinding SlotAccesses::keep(const Run& op, MessageKey read,
                                std::span<const StageIndex> sources) {
  auto source = sources.begin();
  for (const auto& [slot, keeps] : op.reads) {
    read.stage = *source++;
    if (keeps == kNoSlot) continue;
    if (auto finding = fill(keeps, read)) return finding;
  }
  return std::nullopt;
}

MaybeFinding SlotAccesses::apply(const Send& op) {
  if (auto finding = use(op.slot, Phase::kFull, op.message)) return finding;
  state(op.slot).phase = Phase::kSent;
  state(op.slot).last = at_;
  return std::nullopt;
}

// Leaves the Send as the last access: it is that which the next Run must come after.
MaybeFinding SlotAccesses::apply(const Release& op) {
  if (auto finding = use(op.slot, Phase::kSent, op.message)) return finding;
  const std::size_t sent = *state(op.slot).last;
  const int sequence = std::get<Send>(program_.instructions[sent].op).sequence;
  if (op.sequence != sequence)
    return wrong(Flaw::kMessage, op.slot, concat("is for the Send of #", sequence));
  state(op.slot).phase = Phase::kEmpty;
  return std::nullopt;
}

MaybeFinding SlotAccesses::fill(SlotId slot, const MessageKey& message) {
  State& state = this->state(slot);
  if (state.phase != Phase::kEmpty) {
    return wrong(Flaw::kSlot, slot,
                 concat("fills a slot that still holds the ", to_string(state.message), " of"));
  }
  const bool is_sent =
      state.last && std::holds_alternative<Send>(program_.instructions[*state.last].op);
  if (is_sent && !clocks_.is_done(*state.last)) {
    refills_.push_back({*state.last, at_});
  } else if (auto finding = check_order(slot)) {
    return finding;
  }
  state = {.phase = Phase::kFull, .message = message, .last = at_};
  return std::nullopt;
}

MaybeFinding SlotAccesses::use(SlotId slot, Phase phase, const MessageKey& message) const {
  const State& state = slots_[as_index(slot)];
  if (state.phase != phase) {
    const char* got = state.phase == Phase::kEmpty  ? "is empty after"
                      : state.phase == Phase::kFull ? "was not sent after"
                                                    : "was sent by";
    return wrong(Flaw::kSlot, slot, concat("uses a slot that ", got));
  }
  if (state.message != message) {
    return wrong(Flaw::kMessage, slot,
                 concat("needs the ", to_string(message), ", but the slot holds the ",
                        to_string(state.message), " of"));
  }
  return check_order(slot);
}

MaybeFinding SlotAccesses::check_order(SlotId slot) const {
  const State& state = slots_[as_index(slot)];
  if (!state.last || clocks_.is_done(*state.last)) return std::nullopt;
  if (*state.last == at_) return std::nullopt;  // takes its input out before it puts its result in
  // So does a pair: both inputs, before either half runs.
  if (state.phase == Phase::kEmpty && is_first_half(*state.last, at_)) return std::nullopt;
  return wrong(Flaw::kRace, slot, "may use the slot before the end of");
}

bool SlotAccesses::is_first_half(std::size_t first, std::size_t second) const {
  const auto& pairs = program_.joint_pairs;
  return first + 1 == second && std::binary_search(pairs.begin(), pairs.end(), first);
}

MaybeFinding SlotAccesses::finish() const {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].phase == Phase::kEmpty) continue;
    const std::size_t last = *slots_[slot].last;
    return find(Flaw::kSlot, program_, {last},
                concat("s", slot, " still holds the ", to_string(slots_[slot].message),
                       " at the end, since ", name_of(program_, last)));
  }
  return std::nullopt;
}

Finding SlotAccesses::wrong(Flaw flaw, SlotId slot, const std::string& text) const {
  const State& state = slots_[as_index(slot)];
  std::string words = concat(name_of(program_, at_), ": s", slot, ": ", text);
  if (!state.last)
    return find(flaw, program_, {at_}, words + (flaw == Flaw::kSlot ? " nobody" : ""));
  return find(flaw, program_, {*state.last, at_},
              concat(words, ' ', name_of(program_, *state.last)));
}

}  // namespace pipert
