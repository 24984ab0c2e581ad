// Trace: when each instruction of a rank's last passes was issued, started and ended; and what the
// rank held in the last one.
//
// Written by the rank's thread while it runs, read between passes. One clock reading for each
// instruction, and one more where it may wait: about 25 ns each. Without a trace, none.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pipert {

// Nanoseconds of the monotonic clock.
inline std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct TraceOptions {
  int num_passes = 1;            // that are kept; 0: nothing is traced
  bool device_times = false;     // see DeviceTimes
  bool profiler_ranges = false;  // a named range around each action, for a profiler
};

struct TraceEvent {
  std::int64_t issued_ns = 0;   // the rank came to the instruction
  std::int64_t started_ns = 0;  // what it waited for was there
  std::int64_t ended_ns = 0;
  std::int64_t bytes = 0;  // of the tensors that a Send sent
};

// One pass of one rank.
struct PassTrace {
  bool training = true;
  std::int64_t begun_ns = 0;       // the caller began the pass
  std::int64_t done_ns = 0;        // the rank's last instruction was done
  std::int64_t ended_ns = 0;       // the caller had its result; 0: it failed, or runs
  std::size_t num_events = 0;      // that ran
  std::vector<TraceEvent> events;  // by instruction of the Program; as long as the longest one
};

// The last passes that ended well, and the one at hand. All memory is taken when it is made.
class TraceRing {
 public:
  // Nothing is traced with `num_passes` 0.
  TraceRing(int num_passes, std::size_t num_instructions);
  TraceRing(const TraceRing&) = delete;
  TraceRing& operator=(const TraceRing&) = delete;

  // A pass begins: it takes the place of the oldest one, or of the last one if that failed.
  void begin(bool training, std::int64_t begun_ns);
  // The pass at hand ended well. Again, with a later time, once the caller has its result.
  void end(std::int64_t ended_ns);
  // The pass at hand; null where nothing is traced, and before the first.
  PassTrace* current() { return pass_; }
  const PassTrace* current() const { return pass_; }

  // How many passes there are to see.
  int num_passes() const;
  // The last pass that ended well, or the one `ago` such passes before. REQUIRES 0 <= ago <
  // num_passes().
  const PassTrace& last(int ago = 0) const { return passes_[place_of_last(ago)]; }

  // Where, from 0 to the number of passes that are kept, the pass at hand is kept, and last(ago).
  // Likewise.
  std::size_t place() const { return place_of(current_); }
  std::size_t place_of_last(int ago) const {
    return place_of((is_over() ? current_ : current_ - 1) - ago);
  }

 private:
  std::size_t place_of(std::int64_t pass) const {
    return static_cast<std::size_t>(pass) % passes_.size();
  }
  PassTrace& at(std::int64_t pass) { return passes_[place_of(pass)]; }
  const PassTrace& at(std::int64_t pass) const { return passes_[place_of(pass)]; }
  bool is_over() const { return current_ >= 0 && at(current_).ended_ns != 0; }

  std::vector<PassTrace> passes_;
  std::int64_t current_ = -1;  // counts those that ended well
  PassTrace* pass_ = nullptr;  // the one at hand, of `passes_`
};

// What a rank held in its last pass. Bytes are those of its tensors on its device above what was
// there when the pass began; -1 and empty where they were not measured.
struct MemoryTrace {
  std::int64_t peak_bytes = -1;
  std::vector<std::int64_t> bytes;  // by instruction, at its start; then one for the end
};

}  // namespace pipert
