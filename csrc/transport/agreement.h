// Agreement: the end of a pass, where every process learns that all the others came to theirs. Only
// then may anybody touch the parameters. Ranks that share a process need none.
#pragma once

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

}  // namespace pipert
