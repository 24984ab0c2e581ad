#include "schedule/dualpipe_steps.h"

#include "schedule/v_rank.h"

namespace pipert {
namespace {

using enum VAction;

// The paper's step 6: r+1 times B1 B0, from the middle on split, the weight halves left for later.
void add_step_6(VRank& rank, Rank r) {
  const int whole = (r + 1) / 2;
  rank.repeat(whole, {kB1, kB0});
  if (r % 2 == 0) rank.repeat(1, {kB1, kI0});
  rank.repeat(r / 2 + r % 2, {kI1, kI0});
}

}  // namespace

// W is that of the oldest input half.
std::vector<Action> dualpipe_steps(Rank r, int p, int m) {
  VRank rank(r, p, m);
  rank.repeat(2 * (p - 1 - r), {kF0});
  rank.repeat(r + 1, {kF0, kF1});
  rank.repeat(p - 1 - r, {kI1, kW, kF1});
  // The last rank has both halves of the V's tip: apart, its first F and B pass on sooner.
  if (r == p - 1) rank.repeat(1, {kF0, kB1, kF1B0});
  rank.repeat(m - 2 * p + r + (r == p - 1 ? 0 : 1), {kF0B1, kF1B0});
  rank.repeat(p - 1 - r, {kB1, kF1B0});
  add_step_6(rank, r);
  rank.repeat(p - 1 - r, {kW, kI0});
  rank.repeat(r + 1, {kW});
  return std::move(rank).take();
}

}  // namespace pipert
