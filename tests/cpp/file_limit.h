// FileLimit: while it lives no file of this process may be longer, as if /dev/shm were full.
#pragma once

#include <signal.h>
#include <sys/resource.h>

#include <cstddef>

#include "check.h"

namespace pipert {

class FileLimit {
 public:
  explicit FileLimit(std::size_t num_bytes) {
    signal(SIGXFSZ, SIG_IGN);  // the answer is an error then, as from a full /dev/shm
    CHECK(getrlimit(RLIMIT_FSIZE, &before_) == 0);
    rlimit limit = before_;
    limit.rlim_cur = num_bytes;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FileLimit() { CHECK(setrlimit(RLIMIT_FSIZE, &before_) == 0); }
  FileLimit(const FileLimit&) = delete;
  FileLimit& operator=(const FileLimit&) = delete;

 private:
  rlimit before_{};
};

}  // namespace pipert
