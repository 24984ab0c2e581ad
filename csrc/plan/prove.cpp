#include "plan/prove.h"

#include <set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/index.h"
#include "plan/known_arrivals.h"
#include "plan/lane_waits.h"
#include "plan/message_ends.h"
#include "plan/rank_proof.h"

namespace pipert {
namespace {

void require_one_pipeline(std::span<const Program> programs) {
  if (programs.empty()) throw ValueError("expected the programs of one rank or more, got none");
  std::set<Rank> ranks;
  for (const Program& program : programs) {
    const int size = programs.front().num_ranks;
    if (program.num_ranks != size) {
      throw ValueError(concat("expected programs of a pipeline of ", size, " ranks, got one of ",
                              program.num_ranks));
    }
    if (program.rank < 0 || program.rank >= size || !ranks.insert(program.rank).second) {
      throw ValueError(concat("expected each rank of ", size, " once, got rank ", program.rank,
                              ranks.contains(program.rank) ? " twice" : ""));
    }
  }
}

MaybeFinding prove_together(std::span<const Program> programs, std::span<const RankProof> proofs) {
  const MessageEnds ends(programs, proofs);
  if (ends.finding()) return ends.finding();
  if (auto finding = find_deadlock(programs, proofs, ends)) return finding;
  return find_early_refill(programs, proofs, ends);
}

}  // namespace

bool are_all_ranks(std::span<const Program> programs) {
  for (std::size_t rank = 0; rank < programs.size(); ++rank) {
    const Program& program = programs[rank];
    const bool is_next = as_index(program.rank) == rank;
    if (!is_next || as_index(program.num_ranks) != programs.size()) return false;
  }
  return !programs.empty();
}

Proof prove(std::span<const Program> programs) {
  require_one_pipeline(programs);
  Proof proof;
  MaybeFinding finding;
  std::vector<RankProof> ranks;
  for (const Program& program : programs) {
    RankProof& rank = ranks.emplace_back(prove_rank(program));
    proof.unneeded.insert(proof.unneeded.end(), rank.unneeded.begin(), rank.unneeded.end());
    if (!finding) finding = rank.finding;
  }
  proof.is_whole = are_all_ranks(programs);
  if (!finding && proof.is_whole) finding = prove_together(programs, ranks);
  if (!proof.is_whole) {
    for (const RankProof& rank : ranks)
      proof.num_assumed += static_cast<std::int64_t>(rank.refills.size());
  }
  if (finding) {
    proof.flaw = finding->flaw;
    proof.message = std::move(finding->message);
    proof.places = std::move(finding->places);
  }
  return proof;
}

std::string_view flaw_name(Flaw flaw) {
  switch (flaw) {
    case Flaw::kNone:
      return "none";
    case Flaw::kMalformed:
      return "malformed";
    case Flaw::kMark:
      return "mark";
    case Flaw::kSlot:
      return "slot";
    case Flaw::kMessage:
      return "message";
    case Flaw::kState:
      return "state";
    case Flaw::kRace:
      return "race";
    case Flaw::kDeadlock:
      return "deadlock";
  }
  return "none";
}

}  // namespace pipert
