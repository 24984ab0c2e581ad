#include "shm/process_id.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include "base/error.h"

namespace pipert {
namespace {

struct Status {
  char state = 'Z';
  std::uint64_t start_time = 0;
};

// The third and the 22nd field of /proc/<pid>/stat; the second, the program's name, may hold
// anything, so they are counted from its closing parenthesis.
std::optional<Status> status_of(std::int32_t pid) {
  std::ifstream file(concat("/proc/", pid, "/stat"));
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(name_end + 1));
  Status status;
  fields >> status.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> status.start_time;
  if (!fields) return std::nullopt;
  return status;
}

std::uint64_t own_pid_namespace() {
  struct stat info{};
  return stat("/proc/self/ns/pid", &info) == 0 ? info.st_ino : 0;
}

}  // namespace

ProcessId this_process() {
  ProcessId process;
  process.pid = getpid();
  process.pid_namespace = own_pid_namespace();
  if (const auto status = status_of(process.pid)) process.start_time = status->start_time;
  return process;
}

bool is_running(const ProcessId& process) {
  const std::uint64_t own = own_pid_namespace();
  if (own == 0 || own != process.pid_namespace) return true;
  const auto status = status_of(process.pid);
  if (!status.has_value()) return false;
  const bool has_ended = status->state == 'Z' || status->state == 'X' || status->state == 'x';
  return !has_ended && status->start_time == process.start_time;
}

}  // namespace pipert
