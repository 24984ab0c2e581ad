// Segments: rights, names, growth, a full or missing /dev/shm, and what killed processes leave.
#include "shm/segment.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstring>
#include <functional>

#include "check.h"
#include "file_limit.h"
#include "shared_folder.h"
#include "shm/process_id.h"

namespace pipert {
namespace {

std::string text_of(const std::function<void()>& fails) {
  try {
    fails();
  } catch (const SegmentError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Runs `life` in another process and returns how that ended, as waitpid() tells.
int in_child(const std::function<void()>& life) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    life();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  return status;
}

void test_two_processes_share_what_is_written() {
  const SharedFolder folder;
  auto segment = Segment::create(8192, folder.path());
  std::strcpy(segment->data(), "from the parent");
  const int status = in_child([&] {
    auto other = Segment::open(segment->name(), 8192, folder.path());
    CHECK(std::strcmp(other->data(), "from the parent") == 0);
    std::strcpy(other->data() + 4096, "from the child");
    other->remove_name();
  });
  CHECK(status == 0);
  CHECK(std::strcmp(segment->data() + 4096, "from the child") == 0);
  CHECK(folder.num_files() == 0);
}

void test_only_the_user_may_open_it() {
  const SharedFolder folder;
  const auto segment = Segment::create(4096, folder.path());
  struct stat info{};
  CHECK(stat((folder.path() + "/" + segment->name()).c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  CHECK(info.st_uid == geteuid());
}

void test_segment_with_other_rights_or_of_another_user_is_refused() {
  const SharedFolder folder;
  const auto segment = Segment::create(4096, folder.path());
  const std::string path = folder.path() + "/" + segment->name();
  CHECK(chmod(path.c_str(), 0666) == 0);
  const auto open = [&] { Segment::open(segment->name(), 4096, folder.path()); };
  CHECK(contains(text_of(open), "open to other users"));
  CHECK(chmod(path.c_str(), 0600) == 0);
  CHECK(text_of(open).empty());
  if (geteuid() != 0) return;  // only root can give a file away
  CHECK(chown(path.c_str(), 12345, 12345) == 0);
  CHECK(contains(text_of(open), "belongs to user 12345, expected one of user 0"));
}

void test_name_that_is_not_there_and_short_segment_are_errors() {
  const SharedFolder folder;
  CHECK(contains(text_of([&] { Segment::open("pipert-none", 1, folder.path()); }), "pipert-none"));
  const auto segment = Segment::create(4096, folder.path());
  CHECK(contains(text_of([&] { Segment::open(segment->name(), 8192, folder.path()); }),
                 "has 4096 bytes, expected at least 8192"));
}

void test_symbolic_link_in_its_place_is_refused() {
  const SharedFolder folder;
  const auto segment = Segment::create(4096, folder.path());
  const std::string link = folder.path() + "/link";
  CHECK(symlink((folder.path() + "/" + segment->name()).c_str(), link.c_str()) == 0);
  CHECK(!text_of([&] { Segment::open("link", 4096, folder.path()); }).empty());
  CHECK(unlink(link.c_str()) == 0);
}

void test_missing_folder_is_said() {
  const std::string text = text_of([] { Segment::create(4096, "/dev/no-shm"); });
  CHECK(contains(text, "there is no /dev/no-shm"));
}

void test_full_folder_is_an_error_that_leaves_nothing_behind() {
  const SharedFolder folder;
  const FileLimit limit(std::size_t{1} << 20);
  const std::string text = text_of([&] { Segment::create(std::size_t{2} << 20, folder.path()); });
  CHECK(contains(text, "has no room for 2097152 bytes"));
  CHECK(folder.num_files() == 0);
}

void test_it_grows_where_it_is_until_there_is_no_room() {
  const SharedFolder folder;
  const auto segment = Segment::create(4096, folder.path());
  const auto other = Segment::open(segment->name(), 4096, folder.path());
  const FileLimit limit(std::size_t{1} << 20);
  const char* before = segment->data();
  CHECK(segment->grow(std::size_t{512} << 10));
  CHECK(segment->data() == before);
  CHECK(segment->num_bytes() == (std::size_t{512} << 10) + 4096);
  segment->data()[segment->num_bytes() - 1] = 7;
  CHECK(other->data()[segment->num_bytes() - 1] == 7);
  CHECK(!segment->grow(std::size_t{1} << 20));
  CHECK(!segment->grow(Segment::kMaxBytes));
  CHECK(segment->grow(std::size_t{256} << 10));  // what failed took nothing
}

void test_memory_goes_back_and_comes_again() {
  const SharedFolder folder;
  const auto segment = Segment::create(std::size_t{1} << 20, folder.path());
  const std::string path = folder.path() + "/" + segment->name();
  const auto num_blocks = [&] {
    struct stat info{};
    CHECK(stat(path.c_str(), &info) == 0);
    return info.st_blocks;
  };
  const auto whole = num_blocks();
  segment->data()[8192] = 1;
  segment->give_back(8192, std::size_t{512} << 10);
  CHECK(num_blocks() < whole);
  CHECK(segment->take_again(8192, std::size_t{512} << 10));
  CHECK(num_blocks() == whole);
  CHECK(segment->data()[8192] == 0);
}

void test_what_a_killed_process_left_is_removed_by_the_next() {
  const SharedFolder folder;
  for (int i = 0; i < 3; ++i) {
    const int status = in_child([&] {
      const auto segment = Segment::create(4096, folder.path());
      kill(getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(status));
  }
  CHECK(folder.num_files() == 1);  // each has removed what the one before it left
  const auto own = Segment::create(4096, folder.path());
  CHECK(folder.num_files() == 1);
  CHECK(remove_stale_segments(folder.path()) == 0);  // its owner lives
  CHECK(in_child([&] { CHECK(remove_stale_segments(folder.path()) == 0); }) == 0);
  CHECK(folder.num_files() == 1);
}

void test_files_of_others_are_not_touched() {
  const SharedFolder folder;
  const unsigned user = geteuid();
  const auto ns = static_cast<unsigned long long>(this_process().pid_namespace);
  const std::string names[] = {
      "something-else",
      "pipert-notes",
      concat("pipert-", user + 1, "-", ns, "-1234567-1-0123456789abcdef"),  // another user's
      concat("pipert-", user, "-", ns + 1, "-1234567-1-0123456789abcdef"),  // another namespace's
  };
  for (const std::string& name : names) {
    const int file = open((folder.path() + "/" + name).c_str(), O_CREAT | O_WRONLY, 0600);
    CHECK(file >= 0);
    close(file);
  }
  CHECK(remove_stale_segments(folder.path()) == 0);
  for (const std::string& name : names) CHECK(unlink((folder.path() + "/" + name).c_str()) == 0);
}

void test_dead_process_is_told_from_a_later_one_with_its_number() {
  const ProcessId own = this_process();
  CHECK(is_running(own));
  ProcessId earlier = own;
  earlier.start_time -= 1;
  CHECK(!is_running(earlier));
  ProcessId elsewhere = earlier;
  elsewhere.pid_namespace += 1;
  CHECK(is_running(elsewhere));  // nobody knows
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) pause();
  ProcessId dying;
  while (dying.start_time == 0) {
    dying = own;
    dying.pid = child;
    std::string stat = concat("/proc/", child, "/stat");
    std::FILE* file = std::fopen(stat.c_str(), "r");
    CHECK(file != nullptr);
    unsigned long long start = 0;
    CHECK(std::fscanf(file,
                      "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d "
                      "%*d %*d %*d %*d %llu",
                      &start) == 1);
    std::fclose(file);
    dying.start_time = start;
  }
  CHECK(is_running(dying));
  CHECK(kill(child, SIGKILL) == 0);
  siginfo_t info{};
  CHECK(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0);
  CHECK(!is_running(dying));  // nobody has waited for it yet
  CHECK(waitpid(child, nullptr, 0) == child);
  CHECK(!is_running(dying));
}

// Who has no file descriptors left can't look into /proc: nobody is dead for that.
void test_process_that_cannot_be_looked_at_counts_as_running() {
  const ProcessId own = this_process();
  rlimit before{};
  CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit none = before;
  none.rlim_cur = 0;
  CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
  const bool runs = is_running(own);
  const ProcessId unsure = this_process();
  CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(runs);
  CHECK(unsure.pid == own.pid && is_running(unsure));
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  test_two_processes_share_what_is_written();
  test_only_the_user_may_open_it();
  test_segment_with_other_rights_or_of_another_user_is_refused();
  test_name_that_is_not_there_and_short_segment_are_errors();
  test_symbolic_link_in_its_place_is_refused();
  test_missing_folder_is_said();
  test_full_folder_is_an_error_that_leaves_nothing_behind();
  test_it_grows_where_it_is_until_there_is_no_room();
  test_memory_goes_back_and_comes_again();
  test_what_a_killed_process_left_is_removed_by_the_next();
  test_files_of_others_are_not_touched();
  test_dead_process_is_told_from_a_later_one_with_its_number();
  test_process_that_cannot_be_looked_at_counts_as_running();
}
