// verify: shows that a schedule is complete, ordered and free of deadlock, or gives a
// counterexample.
//
// Note [How a schedule is taken to run]
//
// A rank does its actions one after another. An action first takes the message that it reads, then
// computes, then sends its result if another rank reads it; in a lowered schedule SEND and RECV are
// places of their own. A message is found by what it is (stage, microbatch, direction), so those of
// one directed edge may be read in another order than they were sent. It counts against the edge's
// capacity from its send until it is taken, and a send that finds its edge full holds up the rank.
// An executor whose sends leave the compute lane free can only do better.
//
// Stages that hold the same weights (the copies of Note [Copies of the model], and tied stages)
// reduce their gradients together: their REDUCE_GRADs are one collective of their ranks. It holds
// up each rank at its part (a rank with several of the stages: at the last of them) until all have
// come to theirs. Again, an executor that reduces beside its compute lane can only do better, save
// that all ranks must begin their collectives in the same order, which is checked by itself.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "analysis/counterexample.h"
#include "ir/schedule.h"

namespace pipert {

enum class SendMode : std::uint8_t {
  kBuffered,  // a send never waits while fewer than `capacity` messages of its edge are unreceived
  kRendezvous,  // a send waits for its receive: capacity 0
};

struct VerifyOptions {
  bool forward_only =
      false;  // an inference schedule: F alone is complete, and no backward may be there
  // Whether the halves of an overlapped pair run jointly: both messages that they read are taken
  // first, and both results sent last. Else the forward runs first, with all that belongs to it.
  bool joint_pairs = false;
  std::optional<int> capacity =
      std::nullopt;  // messages in flight on each directed edge; nullopt: no bound; 0: rendezvous
  SendMode send_mode = SendMode::kBuffered;
  // What the activations of each rank may take at any time; one number for all ranks, or none: no
  // limit. In the unit of `activation_size`.
  std::vector<double> memory_limit = {};
  // Of one microbatch on each stage; one number for all stages.
  std::vector<double> activation_size = {1.0};
  double weight_share = 1.0;  // of it, what stays from the end of I to the end of W
  // Groups of stages that share weights, such as the embedding and the head, beyond the copies that
  // the placement tells of. A stage is in one group at most.
  std::vector<std::vector<StageIndex>> tied_stages = {};
};

enum class Defect : std::uint8_t {
  kNone,
  kMalformed,   // an action whose stage, microbatch or kind is out of range
  kMisplaced,   // an action on a rank that does not own its stage
  kMissing,     // an action that must be there and is not
  kDoubled,     // an action that is there twice
  kUnordered,   // an action that runs before its input, on its own rank
  kVersion,     // a weight version that is not there, or not the one of the forward
  kCollective,  // two ranks that come to their common collectives in different orders
  kMemory,      // more activations on a rank than its limit
  kDeadlock,    // ranks that wait for each other
};

struct Verdict {
  Defect defect = Defect::kNone;
  std::string message;                 // the counterexample in words; empty when there is none
  Counterexample counterexample = {};  // and as places; empty likewise
  bool ok() const { return defect == Defect::kNone; }
};

// The first defect found, in the order of Defect's list but for missing and doubled, which may come
// in either order. Lowered schedules are checked for their transfers too (each SEND has its RECV),
// for unsharded parameters around each compute action, and for a REDUCE_GRAD after the last
// backward of its stage; updates for the weight versions that they make and those that compute
// actions use. O(actions) in time and memory. Throws ValueError for a negative capacity,
// and for limits, sizes or tied stages that don't fit the schedule.
Verdict verify(const Schedule& schedule, const VerifyOptions& options = {});

// Throws ValueError with the verdict's message unless the schedule is good.
void require_valid(const Schedule& schedule, const VerifyOptions& options = {});

// "none", "malformed", "missing", ...
std::string_view defect_name(Defect defect);

}  // namespace pipert
