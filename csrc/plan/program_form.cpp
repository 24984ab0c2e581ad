#include "plan/program_form.h"

#include <set>
#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

class FormCheck {
 public:
  explicit FormCheck(const Program& program) : program_(program) {}

  MaybeFinding operator()() {
    if (program_.num_marks < 0)
      return find(Flaw::kMalformed, program_, {}, "expected a number of marks of 0 or more");
    if (auto finding = check_stages()) return finding;
    if (auto finding = check_lanes()) return finding;
    for (at_ = 0; at_ < program_.instructions.size(); ++at_) {
      const Instruction& instruction = program_.instructions[at_];
      if (!in_range(instruction.lane, program_.lanes.size())) return wrong("there is no such lane");
      if (!has_good_marks(instruction)) return wrong("there is no such mark");
      auto finding = std::visit([&](const auto& op) { return check(op); }, instruction.op);
      if (finding) return finding;
    }
    return check_pairs();
  }

 private:
  static bool in_range(int id, std::size_t size) { return id >= 0 && as_index(id) < size; }

  // to_string() of the instruction needs a good lane.
  Finding wrong(const char* what) const {
    Finding finding{.flaw = Flaw::kMalformed,
                    .message = concat("rank ", program_.rank, ": %", at_, ": ", what),
                    .places = {}};
    if (in_range(program_.instructions[at_].lane, program_.lanes.size()))
      finding.places.push_back(place_of(program_, at_));
    return finding;
  }

  MaybeFinding check_stages() const {
    const int num_copies = program_.num_copies;
    if (program_.num_stages < 0 || num_copies < 1 || program_.num_stages % num_copies != 0) {
      return find(Flaw::kMalformed, program_, {},
                  concat("expected copies of the model that share the stages evenly, got ",
                         num_copies, " of ", program_.num_stages, " stages"));
    }
    try {
      require_stages(program_.stage_graph, program_.num_stages / num_copies);
    } catch (const ValueError& error) {
      return find(Flaw::kMalformed, program_, {}, error.what());
    }
    return std::nullopt;
  }

  MaybeFinding check_lanes() const {
    std::set<std::pair<LaneKind, Edge>> seen;
    for (std::size_t i = 0; i < program_.lanes.size(); ++i) {
      const LaneSpec& lane = program_.lanes[i];
      const bool is_compute = lane.kind == LaneKind::kCompute;
      if (seen.insert({lane.kind, lane.edge}).second && is_compute == (i == kComputeLane)) continue;
      return find(
          Flaw::kMalformed, program_, {},
          concat("expected lane 0 to be the compute lane, and no lane twice: see lane ", i));
    }
    if (!program_.lanes.empty()) return std::nullopt;
    return find(Flaw::kMalformed, program_, {}, "expected a compute lane, got no lanes");
  }

  bool has_good_marks(const Instruction& instruction) const {
    const auto is_mark = [&](MarkId mark) { return mark >= 0 && mark < program_.num_marks; };
    for (const MarkId mark : instruction.waits) {
      if (!is_mark(mark)) return false;
    }
    return instruction.mark == kNoMark || is_mark(instruction.mark);
  }

  const LaneSpec& lane() const { return program_.lanes[as_index(program_.instructions[at_].lane)]; }

  template <typename Transfer>
  MaybeFinding check_transfer(const Transfer& op, LaneKind lane_kind, SlotKind slot_kind) const {
    if (!in_range(op.slot, program_.slots.size())) return wrong("there is no such slot");
    const Slot& slot = program_.slots[as_index(op.slot)];
    const bool receives = lane_kind == LaneKind::kReceive;
    const Rank here = receives ? lane().edge.destination : lane().edge.source;
    if (lane().kind != lane_kind || here != program_.rank)
      return wrong("a transfer must be on a lane of its direction");
    if (slot.kind != slot_kind || slot.edge != lane().edge)
      return wrong("a transfer must use a slot of its lane's edge and direction");
    return std::nullopt;
  }
  MaybeFinding check(const Recv& op) const {
    return check_transfer(op, LaneKind::kReceive, SlotKind::kReceive);
  }
  MaybeFinding check(const Send& op) const {
    return check_transfer(op, LaneKind::kSend, SlotKind::kSend);
  }
  MaybeFinding check(const Release& op) const {
    return check_transfer(op, LaneKind::kSend, SlotKind::kSend);
  }

  MaybeFinding check(const Run& op) const {
    if (lane().kind != LaneKind::kCompute) return wrong("a Run must be on the compute lane");
    if (!is_compute(op.action.kind) || op.action.kind == ActionKind::kOverlap)
      return wrong("a Run must run F, B, I, W or R");
    for (const auto& [slot, keeps] : op.reads) {
      if (!has_slot(slot) || is(slot, SlotKind::kSend))
        return wrong("a Run reads receive and local slots");
      if (keeps != kNoSlot && !(has_slot(keeps) && is(keeps, SlotKind::kLocal)))
        return wrong("a Run keeps what it reads in local slots");
    }
    for (const SlotId slot : op.writes) {
      if (!has_slot(slot) || is(slot, SlotKind::kReceive))
        return wrong("a Run writes send and local slots");
    }
    return check_action(op.action);
  }

  bool has_slot(SlotId slot) const { return in_range(slot, program_.slots.size()); }
  // REQUIRES that there is such a slot.
  bool is(SlotId slot, SlotKind kind) const { return program_.slots[as_index(slot)].kind == kind; }

  MaybeFinding check(const Move& op) const {
    const bool leaves = op.action.kind == ActionKind::kOffload;
    if (!leaves && op.action.kind != ActionKind::kReload)
      return wrong("a Move is OFFLOAD or RELOAD");
    if (lane().kind != (leaves ? LaneKind::kOffload : LaneKind::kReload))
      return wrong("a Move must be on the lane of its direction");
    return check_action(op.action);
  }

  MaybeFinding check_action(const Action& action) const {
    const bool is_good = action.stage >= 0 && action.stage < program_.num_stages &&
                         action.microbatch >= 0 && action.microbatch < program_.num_microbatches;
    if (is_good) return std::nullopt;
    return wrong("stage or microbatch is out of range");
  }

  MaybeFinding check_pairs() const {
    std::size_t free_from = 0;
    for (const std::size_t first : program_.joint_pairs) {
      const std::size_t size = program_.instructions.size();
      const bool is_good = first >= free_from && first < size && size - first > 1 &&
                           is_half(first, /*forward=*/true) && is_half(first + 1, false);
      if (!is_good) {
        return find(Flaw::kMalformed, program_, {},
                    concat("expected a joint pair at %", first,
                           ": a forward, then a backward (B or I), both in no other pair"));
      }
      free_from = first + 2;
    }
    return std::nullopt;
  }
  bool is_half(std::size_t i, bool forward) const {
    const auto* run = std::get_if<Run>(&program_.instructions[i].op);
    if (run == nullptr) return false;
    const ActionKind kind = run->action.kind;
    if (forward) return kind == ActionKind::kForward;
    return kind == ActionKind::kBackward || kind == ActionKind::kInputGrad;
  }

  const Program& program_;
  std::size_t at_ = 0;
};

}  // namespace

MaybeFinding check_form(const Program& program) { return FormCheck(program)(); }

}  // namespace pipert
