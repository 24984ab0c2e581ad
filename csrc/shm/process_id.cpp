#include "shm/process_id.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <sstream>
#include <string>
#include <variant>

#include "base/error.h"

namespace pipert {
namespace {

// What isn't known (there may be no file descriptor left to look with) stays as it is here.
struct Status {
  bool exists = true;
  char state = '?';
  std::uint64_t start_time = 0;
};

// The start of /proc/<pid>/stat, all that is of interest; an errno if it can't be read.
std::variant<std::string, int> read_stat(std::int32_t pid) {
  const int file = open(concat("/proc/", pid, "/stat").c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return errno;
  std::array<char, 1024> bytes{};
  const ssize_t count = read(file, bytes.data(), bytes.size());
  const int error = errno;
  close(file);
  if (count < 0) return error;
  return std::string(bytes.data(), static_cast<std::size_t>(count));
}

// The third and the 22nd field; the second, the program's name, may hold anything, so they are
// counted from its closing parenthesis.
Status status_of(std::int32_t pid) {
  const auto stat = read_stat(pid);
  if (const int* error = std::get_if<int>(&stat))
    return {.exists = *error != ENOENT && *error != ESRCH};
  const auto& line = std::get<std::string>(stat);
  Status status;
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return status;
  std::istringstream fields(line.substr(name_end + 1));
  fields >> status.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> status.start_time;
  return status;
}

std::uint64_t own_pid_namespace() {
  struct stat info{};
  return stat("/proc/self/ns/pid", &info) == 0 ? info.st_ino : 0;
}

}  // namespace

ProcessId this_process() {
  const std::int32_t pid = getpid();
  return {
      .pid_namespace = own_pid_namespace(), .start_time = status_of(pid).start_time, .pid = pid};
}

bool is_running(const ProcessId& process) {
  const std::uint64_t own = own_pid_namespace();
  if (own == 0 || own != process.pid_namespace) return true;
  const Status status = status_of(process.pid);
  if (!status.exists || status.state == 'Z' || status.state == 'X' || status.state == 'x')
    return false;
  const bool is_known = status.start_time != 0 && process.start_time != 0;
  return !is_known || status.start_time == process.start_time;
}

}  // namespace pipert
