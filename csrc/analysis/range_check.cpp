#include "analysis/range_check.h"

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

bool belongs_to_forward(ActionKind kind) {
  switch (kind) {
    case ActionKind::kForward:
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
      return true;
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kReduceGrad:
    case ActionKind::kOverlap:
    case ActionKind::kRecompute:
    case ActionKind::kOffload:
    case ActionKind::kReload:
    case ActionKind::kUpdate:
      return false;
  }
  return false;
}

// How far the stage at the other end of a transfer is; 0 for what is no transfer.
StageIndex peer_offset(ActionKind kind) {
  switch (kind) {
    case ActionKind::kSendForward:
    case ActionKind::kRecvBackward:
      return 1;
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
      return -1;
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kOverlap:
    case ActionKind::kRecompute:
    case ActionKind::kOffload:
    case ActionKind::kReload:
    case ActionKind::kUpdate:
      return 0;
  }
  return 0;
}

class RangeCheck {
 public:
  RangeCheck(const Schedule& schedule, const VerifyOptions& options)
      : schedule_(schedule), options_(options) {}

  Verdict run() {
    if (schedule_.num_microbatches < 1) {
      return {Defect::kMalformed,
              concat("num_microbatches must be at least 1, got ", schedule_.num_microbatches)};
    }
    if (schedule_.num_ranks() < 1) {
      return {Defect::kMalformed, "a schedule must have at least one rank, got none"};
    }
    if (schedule_.num_slices < 1 || schedule_.num_slices > kMaxSlice + 1) {
      return {Defect::kMalformed, concat("num_slices must be at least 1 and at most ",
                                         kMaxSlice + 1, ", got ", schedule_.num_slices)};
    }
    if (schedule_.num_ranks() != schedule_.placement.num_ranks()) {
      return {Defect::kMalformed, concat("the placement is for ", schedule_.placement.num_ranks(),
                                         " ranks, the schedule has ", schedule_.num_ranks())};
    }
    for (rank_ = 0; rank_ < schedule_.num_ranks(); ++rank_) {
      const auto& actions = schedule_.ranks[as_index(rank_)];
      for (position_ = 0; position_ < actions.size(); ++position_) {
        const Action& action = actions[position_];
        const Verdict verdict =
            action.kind == ActionKind::kOverlap ? check_pair(action) : check(action);
        if (!verdict.ok()) return verdict;
      }
    }
    return {};
  }

 private:
  Verdict check_pair(const Action& pair) {
    if (pair.paired_kind != ActionKind::kBackward && pair.paired_kind != ActionKind::kInputGrad) {
      return malformed(
          pair, concat("the second of the pair must be B or I, got ", kind_name(pair.paired_kind)));
    }
    const Verdict verdict = check(overlapped_forward(pair));
    return verdict.ok() ? check(overlapped_backward(pair)) : verdict;
  }

  Verdict check(const Action& action) const {
    const int num_stages = schedule_.num_stages();
    if (action.stage < 0 || action.stage >= num_stages) {
      return malformed(action,
                       concat("stage must be in [0, ", num_stages, "), got ", action.stage));
    }
    const int num_microbatches = has_microbatch(action.kind) ? schedule_.num_microbatches : 0;
    const bool in_range = has_microbatch(action.kind)
                              ? action.microbatch >= 0 && action.microbatch < num_microbatches
                              : action.microbatch == kNoMicrobatch;
    if (!in_range && num_microbatches == 0)
      return malformed(action, "its kind takes no microbatch");
    if (!in_range) {
      return malformed(action, concat("microbatch must be in [0, ", num_microbatches, "), got ",
                                      action.microbatch));
    }
    if (options_.forward_only && !belongs_to_forward(action.kind)) {
      return malformed(action, "a forward-only schedule has no backward");
    }
    if (const Verdict verdict = check_slice(action); !verdict.ok()) return verdict;
    if (const Verdict verdict = check_version(action); !verdict.ok()) return verdict;
    const Rank owner = schedule_.placement.rank_of(action.stage);
    if (owner != rank_) {
      const std::string reason = concat("stage ", action.stage, " belongs to rank ", owner);
      Verdict verdict = found(Defect::kMisplaced, action, reason);
      verdict.counterexample.add({owner, -1}, action, Role::kAbsent, "belongs here");
      return verdict;
    }
    return check_peer(action);
  }

  Verdict check_slice(const Action& action) const {
    const int num_slices = schedule_.num_slices;
    if (num_slices == 1 || !has_microbatch(action.kind)) {
      if (action.slice == kWholeSequence) return {};
      return malformed(action, num_slices == 1 ? "the schedule has no slices (num_slices is 1)"
                                               : "its kind takes no slice");
    }
    if (action.slice >= 0 && action.slice < num_slices) return {};
    return malformed(action,
                     action.slice == kWholeSequence
                         ? concat("it must be for one of ", num_slices, " slices")
                         : concat("slice must be in [0, ", num_slices, "), got ", action.slice));
  }

  Verdict check_version(const Action& action) const {
    const WeightVersion least = action.kind == ActionKind::kUpdate ? 1 : 0;
    if (has_version(action.kind) ? action.version >= least : action.version == 0) return {};
    return malformed(action, has_version(action.kind) ? concat("version must be at least ", least,
                                                               ", got ", action.version)
                                                      : "its kind takes no version");
  }

  Verdict check_peer(const Action& action) const {
    const StageIndex offset = peer_offset(action.kind);
    if (offset == 0) return {};
    const StageIndex peer = action.stage + offset;
    const bool is_end = offset > 0 ? schedule_.placement.is_last(action.stage)
                                   : schedule_.placement.is_first(action.stage);
    if (is_end) {
      return malformed(action, concat("there is no stage ", peer, " at the other end"));
    }
    if (schedule_.placement.rank_of(peer) == rank_) {
      return malformed(action, concat("stage ", peer, " at the other end is on the same rank"));
    }
    return {};
  }

  std::string place_of(const Action& action) const {
    return concat(to_string(action), " on rank ", rank_, " (position ", position_, ")");
  }

  Verdict malformed(const Action& action, const std::string& reason) const {
    return found(Defect::kMalformed, action, reason);
  }

  Verdict found(Defect defect, const Action& action, const std::string& reason) const {
    Verdict verdict{defect, concat(place_of(action), ": ", reason)};
    const Action& whole = schedule_.ranks[as_index(rank_)][position_];
    verdict.counterexample.add({rank_, static_cast<int>(position_)}, whole, Role::kCulprit, reason);
    return verdict;
  }

  const Schedule& schedule_;
  const VerifyOptions& options_;
  Rank rank_ = 0;
  std::size_t position_ = 0;
};

}  // namespace

Verdict check_ranges(const Schedule& schedule, const VerifyOptions& options) {
  return RangeCheck(schedule, options).run();
}

}  // namespace pipert
