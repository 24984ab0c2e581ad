// rank_proof: what one rank's Program shows by itself, and what it leaves to the others.
//
// A rank's compute lane goes through steps: a step is a Run, or a joint pair.
#pragma once

#include <cstddef>
#include <vector>

#include "plan/finding.h"
#include "plan/mark_use.h"
#include "plan/program.h"
#include "plan/slot_accesses.h"

namespace pipert {

// The transfers of one lane.
struct LaneTransfers {
  std::vector<std::size_t> instructions;  // Sends or Recvs, by sequence
  // Of a Send: how many steps have surely begun when it begins. Of a Recv: the first step that
  // begins with its message surely here; -1: none does.
  std::vector<int> steps;
  std::vector<std::size_t> readers;  // of a Recv: the Run that reads its message
};

// A step before which messages come in: those of `lane` from `begin` to `end` are here then, and
// those before `begin` were known before.
struct Arrival {
  int step = 0;
  std::size_t lane = 0;
  int begin = 0;
  int end = 0;
};

struct RankProof {
  MaybeFinding finding;  // the first flaw; what is below is then of no use
  std::vector<Unneeded> unneeded;
  std::vector<std::size_t> setters;  // by mark: the instruction that sets it
  int num_steps = 0;
  std::vector<int> step_of;              // by Run that refills() names, as they stand
  std::vector<LaneTransfers> transfers;  // by lane; empty for other lanes
  std::vector<Arrival> arrivals;         // ascending by step
  std::vector<SlotRefill> refills;       // ascending by step
};

// O(instructions x lanes of the rank).
RankProof prove_rank(const Program& program);

}  // namespace pipert
