// Counterexample: what is wrong with a schedule, as places in it: what a Verdict says in words, for
// tools and pictures. A value that needs no schedule beside it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "analysis/action_index.h"
#include "ir/schedule.h"

namespace pipert {

enum class Role : std::uint8_t {
  kCulprit,  // it is there, and wrong, or stuck
  kAbsent,   // it should be there; `position` is the one that it could take
  kRelated,  // what the culprit clashes with or waits for
};

struct InvolvedPlace {
  Place place;
  Action action;
  Role role = Role::kCulprit;
  std::string note;  // a few words for a picture, such as "missing"; may be empty
};

enum class WaitReason : std::uint8_t {
  kInput,       // an action of the same rank that makes its input, and comes later
  kMessage,     // what makes or sends the message that it reads
  kRoom,        // what takes an earlier message of the edge, so that it can send
  kReceiver,    // what takes the message that it sends (rendezvous)
  kCollective,  // the part of another rank in the same collective
};

// Between two of the places.
struct PlaceWait {
  int source = 0;  // index of the one that waits
  int target = 0;
  WaitReason reason = WaitReason::kInput;
};

// The actions of one rank around the places, in order; where positions leap, others are left out.
struct Window {
  struct Entry {
    int position = 0;
    Action action;
    double memory = 0.0;  // kMemory alone: activations alive during it
  };
  Rank rank = 0;
  int num_actions = 0;  // of the rank
  std::vector<Entry> entries;
};

struct Counterexample {
  std::vector<InvolvedPlace> places;
  std::vector<PlaceWait> waits;
  std::vector<Window> windows;         // ascending by rank, one for each rank that is involved; of
                                       // many ranks, the first in the order of `places`
  std::optional<double> memory_limit;  // kMemory alone: that of the culprit's rank

  void add(Place place, const Action& action, Role role, std::string note = {}) {
    places.push_back({place, action, role, std::move(note)});
  }
};

// How many ranks have a window.
inline constexpr int kMostWindows = 16;

// Gives the absent actions positions near those of their own stage and microbatch, and cuts the
// windows out of `schedule`, the one in which the places are. `original`: the same schedule with
// its overlapped pairs together; positions are those in it from then on. `memory`: by position on
// the culprit's rank, where `memory_limit` is set.
void complete_counterexample(Counterexample& counterexample, const Schedule& schedule,
                             const Schedule& original, const std::vector<double>& memory);

// "culprit", "absent", "related"; "input", "message", "room", "receiver", "collective".
std::string_view role_name(Role role);
std::string_view reason_name(WaitReason reason);

}  // namespace pipert
