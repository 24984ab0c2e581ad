// ProcessId: which process, so that no later one with the same number can be taken for it.
//
// Plain bytes: it lies in shared memory, where the other end reads it.
#pragma once

#include <cstdint>

namespace pipert {

struct ProcessId {
  std::uint64_t pid_namespace = 0;  // inode of /proc/self/ns/pid: where `pid` counts
  std::uint64_t start_time = 0;     // since boot, in the kernel's ticks; 0: not known
  std::int32_t pid = 0;

  bool operator==(const ProcessId&) const = default;
};

// Asks the kernel anew: a fork is another process.
ProcessId this_process();

// Whether it still runs; a process that was killed and that nobody has waited for doesn't. True
// where that can't be known: it is of another namespace, there is no /proc, or this process has no
// file descriptor left to look there.
bool is_running(const ProcessId& process);

}  // namespace pipert
