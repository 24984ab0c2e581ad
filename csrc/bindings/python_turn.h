// PythonTurn: ranks of one process run their short forwards one after the other.
//
// Every torch operator gives the GIL away and takes it back a microsecond later. When two threads
// are inside Python, each of these is a fight: a futex call, a thread that wakes only to find the
// GIL gone. A forward of a few operators then takes several times as long, for both. So a rank that
// wants to run its forward waits for the one that is in its own, without sleeping, as long as that
// one usually takes; and not at all for a long one, whose operators really run side by side.
#pragma once

namespace pipert {

class PythonTurn {
 public:
  PythonTurn();   // waits; REQUIRES that the GIL is not held
  ~PythonTurn();  // lets the next one go
  PythonTurn(const PythonTurn&) = delete;
  PythonTurn& operator=(const PythonTurn&) = delete;

 private:
  bool is_mine_ = false;  // false: it was not worth waiting for
  long long start_ns_ = 0;
};

}  // namespace pipert
