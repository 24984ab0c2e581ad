// rehearse: runs Programs through real Executors, on threads and channels as a pipeline of one
// process has them, with stages that compute nothing. It shows what becomes of a schedule, whatever
// verify() says of it.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ir/schedule.h"
#include "plan/program.h"
#include "runtime/connections.h"

namespace pipert {

struct RehearsalOptions {
  bool training = true;
  std::optional<int> capacity;  // messages that an edge holds; nullopt: no bound; 0: rendezvous
  // How long nothing may move before the pass counts as stalled. A loaded machine may take as long
  // to wake a thread.
  std::chrono::milliseconds limit{1000};
  int num_passes = 1;  // one after the other, as long as they complete
  int spin_us = 0;     // how long a rank looks for a message before it sleeps
};

enum class Ending : std::uint8_t {
  kCompleted,  // every rank came to the end of its Program
  kStalled,    // ranks wait, and nothing moves
  kFailed,     // a stage was asked for what it can't do
  kRefused,    // an Executor can't be made of the Program
};

struct Rehearsal {
  Ending ending = Ending::kCompleted;
  std::string message;  // why; empty if completed
  std::vector<std::vector<Action>>
      actions;  // by rank: the compute actions and moves of the last pass that were done
  std::vector<std::int64_t> pass_ns;  // of each completed pass: from the first instruction of any
                                      // rank to the last
  // By rank, where it stalled: which of its Runs and Moves it was to do next, or to send the result
  // of.
  std::vector<std::optional<int>> stalled_at;
};

// `programs`: one for each rank, in rank order, such as lower() and lower_blindly() make. A rank
// has the stages that `placement` gives it. Starts and ends a thread for each rank.
Rehearsal rehearse(const std::vector<Program>& programs, const Placement& placement,
                   const RehearsalOptions& options);

// One rank, whose peers are in other processes and rehearse there. `channels`: to and from them;
// `capacity` and `spin_us` are theirs to know.
Rehearsal rehearse_rank(const Program& program, const Placement& placement,
                        ExternalChannels channels, const RehearsalOptions& options);

// "completed", "stalled", "failed", "refused"
std::string_view ending_name(Ending ending);

}  // namespace pipert
