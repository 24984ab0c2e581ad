// SlotAccesses: what each slot of a rank holds along its Program, and whether its accesses are in
// order. Takes the instructions one at a time, in the Program's order.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "ir/stage_links.h"
#include "plan/finding.h"
#include "plan/lane_clocks.h"
#include "plan/program.h"

namespace pipert {

// `run` fills the slot that `send` sent from, and the rank by itself can't show that `send` is done
// then: what comes back from other ranks must.
struct SlotRefill {
  std::size_t send = 0;
  std::size_t run = 0;
};

class SlotAccesses {
 public:
  // Both outlive this. `clocks` is at the instruction that is taken.
  SlotAccesses(const Program& program, const LaneClocks& clocks)
      : program_(program),
        clocks_(clocks),
        links_(program.stage_graph, program.num_stages, program.num_copies),
        slots_(program.slots.size()) {}

  // A slot that is filled while it is full, or emptied while it is empty; a message that isn't the
  // one that the instruction needs, or one that it needs and doesn't read; an access that may begin
  // before the one before it has ended. A slot's accesses are checked each against the one before:
  // that orders all of them.
  MaybeFinding take(std::size_t instruction);
  // At the end of the Program: a slot that is still full.
  MaybeFinding finish() const;

  // Ascending by Run.
  const std::vector<SlotRefill>& refills() const { return refills_; }

 private:
  enum class Phase : std::uint8_t { kEmpty, kFull, kSent };
  struct State {
    Phase phase = Phase::kEmpty;
    MessageKey message;
    std::optional<std::size_t> last;  // the access before: it must be done
  };

  State& state(SlotId slot) { return slots_[as_index(slot)]; }
  MaybeFinding apply(const Recv& op);
  MaybeFinding apply(const Run& op);
  MaybeFinding apply(const Send& op);
  MaybeFinding apply(const Release& op);
  MaybeFinding apply(const Move&) { return std::nullopt; }
  // `needed`, `read`: of the kind and the microbatch that the Run reads, by the stages `sources`.
  MaybeFinding take_inputs(const Run& op, MessageKey needed, std::span<const StageIndex> sources);
  MaybeFinding keep(const Run& op, MessageKey read, std::span<const StageIndex> sources);
  MaybeFinding fill(SlotId slot, const MessageKey& message);
  // Whether the slot is in `phase` and holds `message`, and the access before is done.
  MaybeFinding use(SlotId slot, Phase phase, const MessageKey& message) const;
  MaybeFinding check_order(SlotId slot) const;
  // Of one joint pair.
  bool is_first_half(std::size_t first, std::size_t second) const;
  Finding wrong(Flaw flaw, SlotId slot, const std::string& text) const;

  const Program& program_;
  const LaneClocks& clocks_;
  StageLinks links_;
  std::vector<State> slots_;  // by SlotId
  std::vector<SlotRefill> refills_;
  std::size_t at_ = 0;
};

}  // namespace pipert
