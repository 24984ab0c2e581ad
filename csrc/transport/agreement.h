// Agreement: the end of a pass, where every process learns that all the others came to theirs. Only
// then may anybody touch the parameters. Ranks that share a process need none.
//
// FailureBoard: how a process tells the others that it failed, and learns that one of them did.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace pipert {

class Agreement {
 public:
  virtual ~Agreement() = default;
  // The rank's own thread. Gives this rank's values and fills in those of the rank that has any
  // (the last stage's: its losses). False if aborted.
  virtual bool agree(std::vector<double>& values) = 0;
  // The rank that it waits to hear from, when it waits. Any thread.
  virtual int awaited_rank() const = 0;
  virtual void abort() noexcept = 0;
  virtual bool reset() noexcept = 0;
};

class FailureBoard {
 public:
  virtual ~FailureBoard() = default;
  // The first one to publish wins. Never throws: a job whose store is gone has nobody to tell.
  virtual void publish(const std::string& text) noexcept = 0;
  // What another rank has published since the last reset. Takes a round trip to the store.
  virtual std::optional<std::string> poll() noexcept = 0;
};

}  // namespace pipert
