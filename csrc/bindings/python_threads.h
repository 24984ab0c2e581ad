// PythonThreads: the runtime's worker threads, as Python sees them.
#pragma once

#include <memory>
#include <vector>

#include "runtime/workers.h"

namespace pipert {

class PythonThreads {
 public:
  // For the Workers to be made. Each worker gets a Python thread state that lasts as long as the
  // thread: one for each call would cost a microsecond, and would hide the thread from Python's
  // tools between calls.
  WorkerHooks hooks();

  // Raises KeyboardInterrupt in the Python code that the workers are running, at its next bytecode;
  // code that is not in Python at that moment ends first. REQUIRES the GIL.
  void interrupt();
  // Takes back what was not raised: the next pass shall not get it. REQUIRES the GIL and that no
  // pass is running.
  void clear();

 private:
  struct Table;  // shared with the hooks, which outlive this object
  std::shared_ptr<Table> table_;
  void set_exception(void* exception);
};

}  // namespace pipert
