// Trace: when each instruction of a rank's last pass started, had its inputs, and ended; and what
// the rank held in it.
//
// Written by the rank's thread while it runs, read between passes. One clock reading for each
// instruction (and one more where it waits): about 25 ns.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace pipert {

// Nanoseconds of the monotonic clock.
inline std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct TraceEvent {
  std::int64_t start_ns = 0;  // the rank came to the instruction
  std::int64_t ready_ns = 0;  // what it waited for was there
  std::int64_t end_ns = 0;
};

struct Trace {
  std::int64_t start_ns = 0;       // the caller began the pass
  std::int64_t end_ns = 0;         // the rank's last instruction was done
  std::vector<TraceEvent> events;  // by instruction of the Program; as many as ran
};

// What a rank held in its last pass. Bytes are those of its tensors on its device above what was
// there when the pass began; -1 and empty where they were not measured.
struct MemoryTrace {
  std::int64_t peak_bytes = -1;
  std::vector<std::int64_t> bytes;  // by instruction, at its start; then one for the end
};

}  // namespace pipert
