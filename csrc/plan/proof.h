// Proof: what prove() found out about Programs. A value that needs no Program beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plan/program.h"

namespace pipert {

enum class Flaw : std::uint8_t {
  kNone,
  kMalformed,  // an id out of range, a lane or slot of the wrong kind or edge, a pair of no two
               // Runs
  kMark,       // a mark that is waited for before it is set, or set twice
  kSlot,       // a slot that is filled while full, emptied while empty, or full at the end
  kMessage,    // a slot holds another message than is wanted, or the ends of an edge disagree
  kState,      // activations that an action needs are not there
  kRace,       // two instructions that neither lanes nor marks put in order
  kDeadlock,   // instructions that wait for each other
};

// An instruction, and its text without lane and marks ("run 0F2 writes s2").
struct InstructionPlace {
  Rank rank = 0;
  std::size_t instruction = 0;
  std::string text;
};

// A wait that lanes and other marks imply; or a mark that nobody waits for.
struct Unneeded {
  Rank rank = 0;
  std::size_t instruction = 0;  // that waits for the mark, or sets it
  MarkId mark = kNoMark;
  bool is_wait = false;
};

struct Proof {
  Flaw flaw = Flaw::kNone;
  std::string message;                   // what is wrong, in words; empty if nothing is
  std::vector<InstructionPlace> places;  // the instruction that is wrong, the two that race, or the
                                         // cycle, each waiting for the next; empty likewise
  std::vector<Unneeded> unneeded;        // whatever the flaw: of what was looked at
  // Whether ranks were looked at together. Else each was alone, and of `num_assumed` pairs of a
  // Send and the Run that fills its slot next it was taken on trust that the Release between them
  // is right.
  bool is_whole = false;
  std::int64_t num_assumed = 0;

  bool ok() const { return flaw == Flaw::kNone; }
};

// "none", "malformed", "mark", "slot", "message", "state", "race", "deadlock"
std::string_view flaw_name(Flaw flaw);

}  // namespace pipert
