// SharedFolder: a folder of shared memory of a test's own, where nothing may be left.
#pragma once

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>

#include "check.h"

namespace pipert {

class SharedFolder {
 public:
  SharedFolder() : path_("/dev/shm/test-shm-XXXXXX") { CHECK(mkdtemp(path_.data()) != nullptr); }
  ~SharedFolder() { CHECK(rmdir(path_.c_str()) == 0); }  // fails if anything is left
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;

  const std::string& path() const { return path_; }
  int num_files() const {
    int count = 0;
    DIR* entries = opendir(path_.c_str());
    CHECK(entries != nullptr);
    while (const dirent* entry = readdir(entries)) count += entry->d_name[0] != '.';
    closedir(entries);
    return count;
  }

 private:
  std::string path_;
};

}  // namespace pipert
