// MessageEnds: the Sends and Recvs of all ranks, edge by edge, and whether they agree.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/index.h"
#include "plan/finding.h"
#include "plan/program.h"
#include "plan/rank_proof.h"

namespace pipert {

class MessageEnds {
 public:
  // The other end of a transfer lane.
  struct End {
    Rank rank = -1;
    std::size_t lane = 0;
  };

  // `programs`: all, in rank order; `proofs`: theirs, without findings.
  MessageEnds(std::span<const Program> programs, std::span<const RankProof> proofs);

  // A message that one end sends and the other doesn't receive in its place, or the reverse.
  const MaybeFinding& finding() const { return finding_; }
  // REQUIRES a transfer lane that carries anything, and no finding.
  End peer(Rank rank, std::size_t lane) const { return peers_[as_index(rank)][lane]; }

 private:
  std::vector<std::vector<End>> peers_;  // by rank and lane
  MaybeFinding finding_;
};

}  // namespace pipert
