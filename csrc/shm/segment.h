// Segment: memory that processes of one user on one host share, a file in /dev/shm that has lost
// its name.
//
// One process creates it, the others open it by the name that they were told; the name is removed
// as soon as all have it, so that nothing is left behind whenever anybody is killed after that.
// What a killed process left before that is removed by the next one that creates a segment. Only
// the user can open it (mode 0600, O_EXCL, and a segment of another user is refused).
//
// All its memory is given by the system before it is used: a full /dev/shm is an answer, never a
// SIGBUS. It can grow while it is in use, at an address that stays.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <string>

#include "base/error.h"

namespace pipert {

// There is no room, no /dev/shm, or the segment isn't one that this process may use; the message
// says which.
class SegmentError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Segment {
 public:
  // A segment can grow to so much: room is set aside for it in the address space, not in memory.
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 36;

  // SegmentError if it can't be had. `folder`: where shared memory lives; another one in tests.
  static std::unique_ptr<Segment> create(std::size_t num_bytes,
                                         const std::string& folder = "/dev/shm");
  // The segment of that name, of at least `num_bytes`. SegmentError if it isn't there, or is
  // another user's.
  static std::unique_ptr<Segment> open(const std::string& name, std::size_t num_bytes,
                                       const std::string& folder = "/dev/shm");
  // The creator's removes the name, if nobody has done that yet.
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  const std::string& name() const { return name_; }
  char* data() const { return data_; }
  // When it was made or opened, and what this end has appended since.
  std::size_t num_bytes() const { return num_bytes_; }
  // From now on nobody else can open it. Any process that has it.
  void remove_name() noexcept;

  // Appends so many bytes. False if there is no room for them. One process alone may do this.
  bool grow(std::size_t num_bytes);
  // Gives the memory of a range back to the system, and takes it again; what it held is lost.
  // REQUIRES whole pages of the segment.
  void give_back(std::size_t offset, std::size_t num_bytes) noexcept;
  bool take_again(std::size_t offset, std::size_t num_bytes);
  // Whether at least half of the folder's memory is free, for all who use it.
  bool is_half_free() const noexcept;

 private:
  Segment(std::string folder, std::string name, int file, bool is_creator);

  std::string folder_;
  std::string name_;
  int file_;
  pid_t process_;  // a fork has the object, and none of the memory
  std::size_t num_bytes_ = 0;
  bool is_creator_;
  char* data_ = nullptr;
};

// Removes what processes of this user that no longer run have left; returns how many there were.
int remove_stale_segments(const std::string& folder = "/dev/shm");

}  // namespace pipert
