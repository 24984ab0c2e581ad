#include "analysis/verify.h"

#include "analysis/action_index.h"
#include "analysis/collective_order.h"
#include "analysis/completeness.h"
#include "analysis/deadlock.h"
#include "analysis/local_order.h"
#include "analysis/memory_limit.h"
#include "analysis/range_check.h"
#include "analysis/taken_apart.h"
#include "analysis/weight_versions.h"
#include "base/error.h"

namespace pipert {
namespace {

// The checks that need all actions to be in range, first to last.
Verdict check_all(const TakenApart& taken, const VerifyOptions& options) {
  const Schedule& apart = taken.schedule();
  Verdict verdict = check_num_forwards(apart);
  if (!verdict.ok()) return verdict;
  ActionIndex index(apart.num_stages(), apart.num_microbatches, apart.num_slices);
  verdict = check_doubled(apart, index);
  if (verdict.ok()) verdict = check_complete(apart, index, options);
  if (verdict.ok()) verdict = check_local_order(apart, index);
  if (verdict.ok()) verdict = check_parameters(apart);
  if (verdict.ok()) verdict = check_versions(apart);
  if (!verdict.ok()) return verdict;
  const Collectives collectives(apart, options);
  verdict = collectives.check();
  if (verdict.ok()) verdict = check_memory(apart, options);
  if (verdict.ok()) {
    const auto joint = options.joint_pairs ? taken.pair_starts() : PairStarts();
    verdict = check_deadlock(apart, joint, index, collectives, options);
  }
  return verdict;
}

std::vector<double> memory_around(const Verdict& verdict, const Schedule& apart,
                                  const VerifyOptions& options) {
  if (verdict.defect != Defect::kMemory) return {};
  return memory_on(apart, verdict.counterexample.places.front().place.rank, options);
}

}  // namespace

Verdict verify(const Schedule& schedule, const VerifyOptions& options) {
  if (options.capacity && *options.capacity < 0) {
    throw ValueError(concat("capacity must be at least 0, got ", *options.capacity));
  }
  require_memory_options(schedule, options);
  require_tied_stages(schedule, options);
  Verdict verdict = check_ranges(schedule, options);
  if (!verdict.ok()) {
    complete_counterexample(verdict.counterexample, schedule, schedule, {});
    return verdict;
  }
  const TakenApart taken(schedule);
  const Schedule& apart = taken.schedule();
  verdict = check_all(taken, options);
  if (!verdict.ok()) {
    complete_counterexample(verdict.counterexample, apart, schedule,
                            memory_around(verdict, apart, options));
  }
  return verdict;
}

void require_valid(const Schedule& schedule, const VerifyOptions& options) {
  const Verdict verdict = verify(schedule, options);
  if (verdict.ok()) return;
  const std::string name = schedule.name.empty() ? "" : concat(" '", schedule.name, "'");
  throw ValueError(concat("bad schedule", name, ": ", verdict.message));
}

std::string_view defect_name(Defect defect) {
  switch (defect) {
    case Defect::kNone:
      return "none";
    case Defect::kMalformed:
      return "malformed";
    case Defect::kMisplaced:
      return "misplaced";
    case Defect::kMissing:
      return "missing";
    case Defect::kDoubled:
      return "doubled";
    case Defect::kUnordered:
      return "unordered";
    case Defect::kVersion:
      return "version";
    case Defect::kCollective:
      return "collective";
    case Defect::kMemory:
      return "memory";
    case Defect::kDeadlock:
      return "deadlock";
  }
  return "none";
}

}  // namespace pipert
