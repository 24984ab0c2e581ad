// collective_order: what several ranks do together, and whether all of them do it in the same
// order.
#pragma once

#include <vector>

#include "analysis/action_index.h"
#include "analysis/verify.h"

namespace pipert {

// The gradients of stages that share weights, reduced together: the n-th REDUCE_GRAD of each.
struct Collective {
  std::vector<Place> parts;  // one for each of its ranks, ascending; several ranks
};

class Collectives {
 public:
  // REQUIRES actions in range and tied stages that fit; `schedule` outlives this.
  Collectives(const Schedule& schedule, const VerifyOptions& options);

  // kMissing if one of the stages that share weights reduces its gradients less often than another;
  // kCollective if two ranks come to two of their collectives in different orders.
  Verdict check() const;

  // Those of several ranks. REQUIRES that check() found nothing missing.
  std::vector<Collective> all() const;

 private:
  Verdict check_members() const;
  Verdict check_order(const std::vector<Collective>& collectives) const;
  Verdict different_order(Rank rank, Rank other, const Collective& first,
                          const Collective& second) const;
  const Action& action_at(Place place) const;

  const Schedule& schedule_;
  std::vector<std::vector<StageIndex>> groups_;  // of stages that share weights; each ascending
  std::vector<std::vector<Place>> reductions_;   // by stage, if there are groups: its REDUCE_GRADs
};

// ValueError for a stage out of range or in two groups.
void require_tied_stages(const Schedule& schedule, const VerifyOptions& options);

}  // namespace pipert
