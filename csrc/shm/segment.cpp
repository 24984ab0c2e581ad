#include "shm/segment.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "shm/process_id.h"

namespace pipert {
namespace {

// pipert-<user>-<namespace of the pid>-<pid>-<start time>-<random>: who made it, for those who
// find it.
constexpr const char* kNameFormat = "pipert-%u-%llu-%d-%llu-%16llx";
constexpr std::size_t kStep = std::size_t{16} << 20;  // so much at a time is taken from the system

std::string make_name() {
  unsigned long long random = 0;
  if (getrandom(&random, sizeof(random), 0) != sizeof(random))
    throw SegmentError(concat("no random numbers: ", std::strerror(errno)));
  const ProcessId process = this_process();
  std::array<char, 128> name{};
  std::snprintf(name.data(), name.size(), "pipert-%u-%llu-%d-%llu-%016llx", geteuid(),
                static_cast<unsigned long long>(process.pid_namespace), process.pid,
                static_cast<unsigned long long>(process.start_time), random);
  return name.data();
}

std::string path_of(const std::string& folder, const std::string& name) {
  return folder + "/" + name;
}

// Makes the range of the file real; an errno if it can't be.
int allocate(int file, std::size_t offset, std::size_t num_bytes) {
  while (num_bytes > 0) {
    const std::size_t step = std::min(num_bytes, kStep);
    const int error = posix_fallocate(file, static_cast<off_t>(offset), static_cast<off_t>(step));
    if (error == EINTR) continue;  // the kernel has taken this step back
    if (error != 0) return error;
    offset += step;
    num_bytes -= step;
  }
  return 0;
}

std::string describe(const std::string& folder, int error) {
  struct stat info{};
  if (stat(folder.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
    return concat("there is no ", folder, ", where shared memory lives");
  return std::strerror(error);
}

// Throws unless the file is this user's alone.
void check_owner(int file, const std::string& name) {
  struct stat info{};
  if (fstat(file, &info) != 0)
    throw SegmentError(concat("can't look at ", name, ": ", std::strerror(errno)));
  if (info.st_uid != geteuid()) {
    throw SegmentError(concat("the shared memory ", name, " belongs to user ", info.st_uid,
                              ", expected one of user ", geteuid()));
  }
  if ((info.st_mode & (S_IRWXG | S_IRWXO)) != 0 || !S_ISREG(info.st_mode)) {
    throw SegmentError(concat("the shared memory ", name,
                              " is open to other users, expected one "
                              "with rights 0600"));
  }
}

}  // namespace

std::unique_ptr<Segment> Segment::create(std::size_t num_bytes, const std::string& folder) {
  remove_stale_segments(folder);
  std::string name = make_name();
  const std::string path = path_of(folder, name);
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (file < 0) throw SegmentError(concat("can't make shared memory: ", describe(folder, errno)));
  std::unique_ptr<Segment> segment(new Segment(folder, std::move(name), file, true));
  if (!segment->grow(num_bytes)) {
    throw SegmentError(concat(folder, " has no room for ", num_bytes,
                              " bytes: make it larger (docker run --shm-size)"));
  }
  return segment;
}

std::unique_ptr<Segment> Segment::open(const std::string& name, std::size_t num_bytes,
                                       const std::string& folder) {
  const int file = ::open(path_of(folder, name).c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC);
  if (file < 0) {
    const int error = errno;
    struct stat info{};
    if (stat(path_of(folder, name).c_str(), &info) == 0 && info.st_uid != geteuid()) {
      throw SegmentError(concat("the shared memory ", name, " belongs to user ", info.st_uid,
                                ", expected one of user ", geteuid()));
    }
    throw SegmentError(
        concat("can't open the shared memory ", name, ": ", describe(folder, error)));
  }
  std::unique_ptr<Segment> segment(new Segment(folder, name, file, false));
  check_owner(file, name);
  struct stat info{};
  if (fstat(file, &info) == 0) segment->num_bytes_ = static_cast<std::size_t>(info.st_size);
  if (segment->num_bytes_ < num_bytes) {
    throw SegmentError(concat("the shared memory ", name, " has ", segment->num_bytes_,
                              " bytes, expected at least ", num_bytes));
  }
  return segment;
}

Segment::Segment(std::string folder, std::string name, int file, bool is_creator)
    : folder_(std::move(folder)),
      name_(std::move(name)),
      file_(file),
      process_(getpid()),
      is_creator_(is_creator) {
  // What lies behind the end of the file becomes usable as the file grows.
  void* data =
      mmap(nullptr, kMaxBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_, 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    if (is_creator_) remove_name();
    close(file_);
    throw SegmentError(concat("can't map ", kMaxBytes, " bytes of addresses for shared memory: ",
                              std::strerror(error), " (see ulimit -v)"));
  }
  data_ = static_cast<char*>(data);
  // A fork (a DataLoader's worker, say) would keep the memory; and cores would hold it twice.
  madvise(data_, kMaxBytes, MADV_DONTFORK);
  madvise(data_, kMaxBytes, MADV_DONTDUMP);
}

Segment::~Segment() {
  if (process_ == getpid()) {
    if (is_creator_) remove_name();
    munmap(data_, kMaxBytes);
  }
  close(file_);
}

void Segment::remove_name() noexcept {
  try {
    unlink(path_of(folder_, name_).c_str());
  } catch (...) {  // no memory for the path: the next process that makes a segment removes it
  }
}

bool Segment::grow(std::size_t num_bytes) {
  if (num_bytes > kMaxBytes - num_bytes_) return false;
  if (allocate(file_, num_bytes_, num_bytes) != 0) {
    // The steps that went well go back; if that fails they are used the next time.
    static_cast<void>(ftruncate(file_, static_cast<off_t>(num_bytes_)));
    return false;
  }
  num_bytes_ += num_bytes;
  return true;
}

void Segment::give_back(std::size_t offset, std::size_t num_bytes) noexcept {
  static_cast<void>(fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              static_cast<off_t>(offset), static_cast<off_t>(num_bytes)));
}

bool Segment::take_again(std::size_t offset, std::size_t num_bytes) {
  if (allocate(file_, offset, num_bytes) == 0) return true;
  give_back(offset, num_bytes);
  return false;
}

bool Segment::is_half_free() const noexcept {
  struct statvfs info{};
  return fstatvfs(file_, &info) == 0 && info.f_bavail >= info.f_blocks / 2;
}

int remove_stale_segments(const std::string& folder) {
  DIR* entries = opendir(folder.c_str());
  if (entries == nullptr) return 0;
  int count = 0;
  const ProcessId own = this_process();
  while (const dirent* entry = readdir(entries)) {
    unsigned user = 0;
    unsigned long long pid_namespace = 0;
    unsigned long long start_time = 0;
    unsigned long long random = 0;
    ProcessId owner;
    if (std::sscanf(entry->d_name, kNameFormat, &user, &pid_namespace, &owner.pid, &start_time,
                    &random) != 5)
      continue;
    owner.pid_namespace = pid_namespace;
    owner.start_time = start_time;
    // Whoever is of another namespace can't be judged from here.
    if (user != geteuid() || pid_namespace != own.pid_namespace || is_running(owner)) continue;
    struct stat info{};
    const int at = dirfd(entries);
    if (fstatat(at, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0 || info.st_uid != geteuid())
      continue;
    if (unlinkat(at, entry->d_name, 0) == 0) ++count;
  }
  closedir(entries);
  return count;
}

}  // namespace pipert
