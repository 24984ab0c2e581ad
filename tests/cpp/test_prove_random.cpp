// Random small Programs, good ones and ones with a few things changed: what the prover accepts is
// right in every order in which lanes and ranks may go on.

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/index.h"
#include "check.h"
#include "interleavings.h"
#include "plan/prove.h"
#include "random_programs.h"

namespace pipert {
namespace {

// Beyond it an order that goes wrong may be missed; most have far fewer.
constexpr std::size_t kMostStates = 20'000;
constexpr int kChangesOfEach = 40;

struct Tally {
  int num_programs = 0;
  int num_joint = 0;  // of those with joint pairs
  int num_skips = 0;  // of those whose stages read beyond the chain
  int num_accepted = 0;
  int num_refused = 0;
  int num_vast = 0;
};

Fate fate(const std::vector<Program>& programs) {
  for (const bool in_order : {false, true}) {
    const Fate fate = Interleavings(programs, in_order, kMostStates).fate();
    if (fate != Fate::kRight) return fate;
  }
  return Fate::kRight;
}

void require_right(const std::vector<Program>& programs, Tally& tally) {
  const Fate real = fate(programs);
  if (real == Fate::kVast) {
    ++tally.num_vast;
    return;
  }
  if (real != Fate::kRight) {
    for (const Program& program : programs) std::fprintf(stderr, "%s", to_string(program).c_str());
  }
  CHECK(real == Fate::kRight);
}

void change_and_judge(const std::vector<Program>& good, Random& random, Tally& tally) {
  std::vector<Program> programs = good;
  for (int left = 1 + random.below(3); left > 0; --left) {
    Program& program = programs[as_index(random.below(static_cast<int>(programs.size())))];
    RandomChange(program, random).make();
  }
  const Proof proof = prove(programs);
  CHECK(proof.ok() == proof.message.empty());
  if (!proof.ok()) {
    ++tally.num_refused;
    return;
  }
  ++tally.num_accepted;
  require_right(programs, tally);
}

void what_is_accepted_is_right(std::uint64_t seed, int rounds) {
  Random random(seed);
  Tally tally;
  for (int round = 0; round < rounds; ++round) {
    std::vector<Program> programs;
    try {
      programs = random_programs(random);
    } catch (const ValueError&) {
      continue;  // pairs that would make ranks wait for each other
    }
    const Proof proof = prove(programs);
    if (!proof.ok()) {
      for (const Program& program : programs)
        std::fprintf(stderr, "%s", to_string(program).c_str());
      std::fprintf(stderr, "%s\n", proof.message.c_str());
    }
    CHECK(proof.ok());
    require_right(programs, tally);
    ++tally.num_programs;
    bool is_joint = false;
    for (const Program& program : programs) is_joint |= !program.joint_pairs.empty();
    tally.num_joint += is_joint ? 1 : 0;
    tally.num_skips += programs.front().stage_graph.is_chain() ? 0 : 1;
    for (int i = 0; i < kChangesOfEach; ++i) change_and_judge(programs, random, tally);
  }
  std::printf(
      "%d programs, %d with joint pairs, %d with skip edges; %d changes accepted, %d refused; %d "
      "were vast\n",
      tally.num_programs, tally.num_joint, tally.num_skips, tally.num_accepted, tally.num_refused,
      tally.num_vast);
  CHECK(tally.num_joint > tally.num_programs / 20);
  CHECK(tally.num_skips > tally.num_programs / 10);
  CHECK(tally.num_accepted > 2 * tally.num_programs);
  CHECK(tally.num_vast < tally.num_accepted / 4);
}

}  // namespace
}  // namespace pipert

// Others than the usual seed and number of rounds may be given.
int main(int argc, char** argv) {
  const std::uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 60;
  pipert::what_is_accepted_is_right(seed, rounds);
}
