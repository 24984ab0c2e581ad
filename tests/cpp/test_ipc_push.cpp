// Pushes between GPU processes, with the fake of CUDA: thousands of messages of random sizes over
// random slots, streams that run late in any order, aborts and deaths at any moment.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <deque>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda_fake.h"
#include "ipc/landing.h"
#include "ipc/pusher.h"
#include "shared_folder.h"
#include "shm/ring_reader.h"
#include "shm/ring_writer.h"

namespace pipert {
namespace {

using std::chrono::milliseconds;
constexpr std::chrono::microseconds kSpin{20};
constexpr std::size_t kMaxBytes = 150'000;  // more than a first slot
constexpr std::uint32_t kBeforeWrap = 0xFFFFFFFF - 40;

// What goes through the ring, as a channel's frames do; `is_pushed`: else the bytes follow.
struct Note {
  Pushed pushed;
  std::uint32_t is_pushed = 0;
  std::uint32_t slot = 0;
};

struct Edge {
  unsigned seed;
  std::uint32_t num_slots;
  std::size_t num_messages;
  std::uint32_t num_streams = Pusher::kNumStreams;
};

std::vector<std::size_t> part_sizes(const Edge& edge, std::size_t number) {
  std::mt19937 random(edge.seed * 1000 + static_cast<unsigned>(number));
  const std::size_t max_bytes = number % 20 == 19 ? kMaxBytes : 3000;
  std::vector<std::size_t> sizes(1 + random() % 3);
  for (std::size_t& size : sizes) size = random() % max_bytes;
  return sizes;
}

std::string contents(const Edge& edge, std::size_t number, std::size_t num_bytes) {
  std::string bytes(num_bytes, '\0');
  for (std::size_t i = 0; i < num_bytes; i += 1 + i / 64)
    bytes[i] = static_cast<char>(1 + (number * 31 + i + edge.seed) % 120);
  return bytes;
}

// The sender's rank: computes each message on a stream, and uses its memory again for the next one
// as soon as the pusher's stream has passed.
class Source {
 public:
  Source(const Edge& edge, const std::shared_ptr<Segment>& ring,
         const std::shared_ptr<Segment>& board)
      : edge_(edge), ring_(ring, kSpin), pusher_(board, edge.num_streams), sent_(edge.num_slots) {
    ring_.begin_pass();
  }
  ~Source() { CHECK(compute_.drain(milliseconds(5000))); }

  // False if it was aborted.
  bool send(std::size_t number) {
    const std::uint32_t slot = static_cast<std::uint32_t>(number % edge_.num_slots);
    if (sent_[slot] > 0 && !ring_.wait_until_taken(sent_[slot])) return false;
    std::string host;
    std::vector<Pusher::Part> parts;
    Produced& produced = produced_.emplace_back();
    for (const std::size_t size : part_sizes(edge_, number)) {
      produced.host.push_back(contents(edge_, number, size));
      produced.memory.emplace_back(size + 1);
      cuda::copy_to_device(produced.memory.back().data(), produced.host.back().data(), size,
                           compute_.get());
      parts.push_back({produced.memory.back().data(), size});
      host += produced.host.back();
    }
    const auto pushed = pusher_.push(slot, parts, compute_.get());
    Note note{pushed.value_or(Pushed{}), pushed.has_value() ? 1U : 0U, slot};
    num_by_host_ += pushed.has_value() ? 0 : 1;
    std::string bytes(reinterpret_cast<const char*>(&note), sizeof(note));
    if (!pushed.has_value()) bytes += host;
    CHECK(ring_.try_write(bytes.size(), [&](char* to, const RingWriter::Progress&) {
      std::memcpy(to, bytes.data(), bytes.size());
    }));
    sent_[slot] = number + 1;
    cuda::record(produced.pushed.get(), pusher_.stream(pushed.value_or(Pushed{}).stream));
    while (produced_.size() > 1 && cuda::is_done(produced_.front().pushed.get()) &&
           compute_.drain(milliseconds(2000)))
      produced_.pop_front();
    return true;
  }

  bool finish() { return ring_.wait_until_taken(edge_.num_messages); }
  void abort() {
    ring_.abort();
    pusher_.abort();
  }
  std::size_t num_by_host() const { return num_by_host_; }

 private:
  struct Produced {
    std::deque<std::string> host;  // whose elements stay where they are
    std::vector<DeviceMemory> memory;
    CudaEvent pushed;
  };

  Edge edge_;
  CudaStream compute_;
  std::deque<Produced> produced_;
  RingWriter ring_;
  Pusher pusher_;
  std::vector<std::uint64_t> sent_;
  std::size_t num_by_host_ = 0;
};

class Destination {
 public:
  Destination(const Edge& edge, const std::shared_ptr<Segment>& ring,
              const std::shared_ptr<Segment>& board, bool may_fail = false)
      : edge_(edge), may_fail_(may_fail), ring_(ring, kSpin), landing_(board) {}

  // The stream must be done before the landing goes, as a lane is before its channels.
  ~Destination() { CHECK(lane_.drain(milliseconds(5000))); }

  // False if it was aborted. What came is looked at when the lane has passed.
  bool take(std::size_t number) {
    const auto size = ring_.wait_for_message();
    if (!size.has_value()) return false;
    std::string bytes(*size, '?');
    if (!ring_.read(bytes.data())) return false;
    Note note;
    std::memcpy(&note, bytes.data(), sizeof(note));
    const std::vector<std::size_t> sizes = part_sizes(edge_, number);
    if (note.is_pushed == 0) {
      std::string expected;
      std::size_t end = 0;
      for (const std::size_t part : sizes) {
        expected += contents(edge_, number, part);
        end = align_part(end) + part;
      }
      CHECK(bytes.substr(sizeof(note)) == expected);
      landing_.grow(note.slot + 1, end);
      return true;
    }
    Arrived& arrived = arrived_.emplace_back();
    arrived.number = number;
    std::vector<Landing::Part> parts;
    for (const std::size_t part : sizes) {
      arrived.memory.emplace_back(part + 1);
      parts.push_back({arrived.memory.back().data(), part});
    }
    if (!landing_.take(note.pushed, parts, lane_.get())) {
      arrived_.pop_back();
      return false;
    }
    ++num_pushed_;
    if (arrived_.size() > 20) look();
    return true;
  }

  // Waits for what came. Unless a failure is expected, which lets waits go, it must be right.
  void look() {
    cuda::synchronize(lane_.get());
    for (const Arrived& arrived : arrived_) {
      if (may_fail_) break;
      const std::vector<std::size_t> sizes = part_sizes(edge_, arrived.number);
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        CHECK(std::string(arrived.memory[i].data(), sizes[i]) ==
              contents(edge_, arrived.number, sizes[i]));
      }
    }
    arrived_.clear();
  }

  void abort() {
    ring_.abort();
    landing_.abort();
  }
  std::size_t num_pushed() const { return num_pushed_; }

 private:
  struct Arrived {
    std::size_t number = 0;
    std::vector<DeviceMemory> memory;
  };

  Edge edge_;
  bool may_fail_;
  RingReader ring_;
  Landing landing_;
  std::deque<Arrived> arrived_;
  std::size_t num_pushed_ = 0;
  CudaStream lane_;
};

struct Segments {
  explicit Segments(const std::string& folder)
      : folder(folder),
        ring(make_ring_segment(folder)),
        board(make_push_segment(folder, kBeforeWrap)) {}
  // A landing that waits for the other end to close keeps the board.
  ~Segments() { board->remove_name(); }
  std::string folder;
  std::shared_ptr<Segment> ring;
  std::shared_ptr<Segment> board;
};

void send_all(Source& source, const Edge& edge) {
  for (std::size_t i = 0; i < edge.num_messages; ++i) CHECK(source.send(i));
  CHECK(source.finish());
  CHECK(source.num_by_host() > 0 && source.num_by_host() < edge.num_messages / 2);
}

void take_all(Destination& destination, const Edge& edge) {
  for (std::size_t i = 0; i < edge.num_messages; ++i) CHECK(destination.take(i));
  destination.look();
  CHECK(destination.num_pushed() > edge.num_messages / 2);
}

void test_threads_exchange_messages_bit_for_bit(const Edge& edge) {
  const SharedFolder folder;
  const Segments segments(folder.path());
  cuda_fake::set_delays(edge.seed, 150);
  std::thread receiver([&] {
    Destination destination(edge, segments.ring, segments.board);
    take_all(destination, edge);
  });
  {
    Source source(edge, segments.ring, segments.board);
    send_all(source, edge);
  }
  receiver.join();
}

void test_slots_are_freed_when_both_ends_have_closed() {
  const SharedFolder folder;
  {
    const Segments segments(folder.path());
    const Landing other(make_push_segment(folder.path()));
    const int before = cuda_fake::num_allocations();
    std::optional<Landing> landing(segments.board);
    std::optional<Pusher> pusher(segments.board);
    pusher->open_granted();
    CHECK(cuda_fake::num_imports() == 1);
    landing.reset();
    CHECK(cuda_fake::num_allocations() == before + 1);  // the pusher still has it
    pusher.reset();
    CHECK(cuda_fake::num_imports() == 0);
    const Landing next(make_push_segment(folder.path()));
    CHECK(cuda_fake::num_allocations() == before + 1);  // its own
  }
  CHECK(cuda_fake::num_allocations() == 0);
}

// A push and what tells of it, of memory that stays.
struct TwoEnds {
  explicit TwoEnds(const std::string& folder)
      : board(make_push_segment(folder)), landing(board), pusher(board) {}

  Pushed push(std::uint32_t slot) {
    const auto pushed = pusher.push(slot, {{memory.data(), kBytes}}, compute.get());
    CHECK(pushed.has_value());
    return *pushed;
  }
  void take(const Pushed& pushed) {
    CHECK(landing.take(pushed, {{memory.data() + kBytes, kBytes}}, lane.get()));
  }
  bool has_arrived(const Pushed& pushed) const {
    return has_reached(push_board(*board).arrived[pushed.stream].number.load(), pushed.number);
  }
  void synchronize() {
    for (std::uint32_t i = 0; i < pusher.num_streams(); ++i) cuda::synchronize(pusher.stream(i));
    cuda::synchronize(lane.get());
  }

  static constexpr std::size_t kBytes = 1000;
  std::shared_ptr<Segment> board;
  DeviceMemory memory{2 * kBytes};
  Landing landing;
  Pusher pusher;
  CudaStream compute;
  CudaStream lane;
};

void test_push_into_a_free_slot_passes_one_whose_slot_is_in_use() {
  const SharedFolder folder;
  TwoEnds ends(folder.path());
  const Pushed first = ends.push(0);
  const Pushed behind = ends.push(0);  // until the first one is taken
  const Pushed other = ends.push(1);
  while (!ends.has_arrived(other)) std::this_thread::yield();
  CHECK(ends.has_arrived(first) && !ends.has_arrived(behind));
  for (const Pushed& pushed : {first, behind, other}) ends.take(pushed);
  ends.synchronize();
  CHECK(ends.has_arrived(behind));
}

void test_streams_are_not_given_waits_that_are_over() {
  const SharedFolder folder;
  TwoEnds ends(folder.path());
  const int before = cuda_fake::num_word_waits();
  for (int i = 0; i < 5; ++i) {
    const Pushed pushed = ends.push(0);
    ends.synchronize();
    ends.take(pushed);
    ends.synchronize();
  }
  CHECK(cuda_fake::num_word_waits() == before);
  const Pushed pushed = ends.push(0);
  (void)ends.push(0);
  CHECK(cuda_fake::num_word_waits() == before + 1);
  ends.take(pushed);
  ends.synchronize();
}

// Unmapping waits for all streams, so it mustn't come when something else waits for this thread.
void test_slots_are_unmapped_when_larger_ones_are_mapped_and_not_by_a_push() {
  const SharedFolder folder;
  TwoEnds ends(folder.path());
  ends.take(ends.push(0));
  ends.synchronize();
  ends.landing.grow(8, 1'000'000);
  ends.pusher.open_granted();
  CHECK(cuda_fake::num_imports() == 1);
  std::uint32_t gate = 0;
  cuda::wait_value(ends.compute.get(), &gate, 1);
  const Pushed pushed = ends.push(7);
  CHECK(!ends.has_arrived(pushed));
  std::atomic_ref(gate).store(1);
  ends.take(pushed);
  ends.synchronize();
}

void test_a_pusher_has_one_to_four_streams() {
  const SharedFolder folder;
  const std::shared_ptr<Segment> board = make_push_segment(folder.path());
  CHECK_THROWS(Pusher(board, 0), ValueError);
  CHECK_THROWS(Pusher(board, kMaxPushStreams + 1), ValueError);
}

// Each end in turn stops what both were about, at any moment.
void test_abort_ends_everything_on_both_ends(unsigned seed) {
  const Edge edge{seed, 1 + seed % 4, 1'000'000};
  const SharedFolder folder;
  const Segments segments(folder.path());
  cuda_fake::set_delays(seed, 300);
  Destination destination(edge, segments.ring, segments.board, true);
  Source source(edge, segments.ring, segments.board);
  const auto until_end = [&](const auto& step) {
    try {
      for (std::size_t i = 0; step(i); ++i) {
      }
    } catch (const ConnectionLost&) {
    }
  };
  std::thread receiver([&] {
    until_end([&](std::size_t i) { return destination.take(i); });
    destination.abort();  // as a rank does that hears of it
  });
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::microseconds(seed * 397 % 20'000));
    seed % 2 == 0 ? source.abort() : destination.abort();
  });
  until_end([&](std::size_t i) { return source.send(i); });
  source.abort();
  receiver.join();
  stopper.join();
}

template <typename Life>
pid_t start_child(const Life& life) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child > 0) return child;
  alarm(60);
  life();
  _exit(0);
}

void test_processes_exchange_messages_bit_for_bit(const Edge& edge) {
  const SharedFolder folder;
  const Segments segments(folder.path());
  cuda_fake::set_delays(edge.seed, 100);
  const pid_t child = start_child([&] {
    const std::shared_ptr<Segment> ring = open_ring_segment(segments.ring->name(), segments.folder);
    const std::shared_ptr<Segment> board =
        open_push_segment(segments.board->name(), segments.folder);
    Destination destination(edge, ring, board);
    take_all(destination, edge);
  });
  {
    Source source(edge, segments.ring, segments.board);
    send_all(source, edge);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

// Kills the sender at some moment; the streams of the receiver wait for what it has begun.
void test_death_ends_the_waits_of_the_survivors_streams(std::chrono::microseconds delay) {
  const Edge edge{77, 3, 1'000'000};
  const SharedFolder folder;
  const Segments segments(folder.path());
  cuda_fake::set_delays(static_cast<unsigned>(delay.count()), 2000);
  const pid_t child = start_child([&] {
    const std::shared_ptr<Segment> ring = open_ring_segment(segments.ring->name(), segments.folder);
    const std::shared_ptr<Segment> board =
        open_push_segment(segments.board->name(), segments.folder);
    Source source(edge, ring, board);
    for (std::size_t i = 0; source.send(i); ++i) {
    }
  });
  const PushBoard& board = push_board(*segments.board);
  std::thread killer([&] {
    // Who dies before is missed while ranks connect.
    while (board.pusher.is_open.load() == 0) std::this_thread::sleep_for(milliseconds(1));
    std::this_thread::sleep_for(delay);
    CHECK(kill(child, SIGKILL) == 0);
  });
  const auto start = std::chrono::steady_clock::now();
  {
    Destination destination(edge, segments.ring, segments.board, true);
    bool is_lost = false;
    try {
      for (std::size_t i = 0; destination.take(i); ++i) {
        if (std::chrono::steady_clock::now() - start > std::chrono::seconds(20)) CHECK(false);
      }
    } catch (const ConnectionLost&) {
      is_lost = true;
    }
    CHECK(is_lost || waitpid(child, nullptr, WNOHANG) >= 0);
  }  // its lane ends: nobody writes the words but the waits' own ender
  killer.join();
  (void)waitpid(child, nullptr, 0);
}

void test_push_that_was_never_granted_is_refused() {
  const SharedFolder folder;
  Landing landing(make_push_segment(folder.path()));
  const CudaStream stream;
  DeviceMemory memory(100'000);
  CHECK_THROWS(landing.take({1, 1, 0, 0}, {{memory.data(), 10}}, stream.get()), ValueError);
  CHECK_THROWS(landing.take({0, 1, 4, 0}, {{memory.data(), 10}}, stream.get()), ValueError);
  CHECK_THROWS(landing.take({0, 1, 0, 0}, {{memory.data(), 100'000}}, stream.get()), ValueError);
  CHECK_THROWS(landing.take({0, 1, 0, kMaxPushStreams}, {{memory.data(), 10}}, stream.get()),
               ValueError);
}

void test_foreign_bytes_are_refused() {
  const SharedFolder folder;
  const std::shared_ptr<Segment> other = Segment::create(push_board_bytes(), folder.path());
  CHECK_THROWS(Landing{other}, SegmentError);
  CHECK_THROWS(Pusher{other}, SegmentError);
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  alarm(110);  // nothing here may hang
  for (unsigned seed = 0; seed < 4; ++seed)
    test_processes_exchange_messages_bit_for_bit({seed, 1 + seed * 3, 1500, 1 + seed});
  for (unsigned seed = 0; seed < 6; ++seed)
    test_threads_exchange_messages_bit_for_bit({seed, 1 + seed * 2, 1000});
  for (int us = 500; us < 40'000; us = us * 3)
    test_death_ends_the_waits_of_the_survivors_streams(std::chrono::microseconds(us));
  for (unsigned seed = 0; seed < 40; ++seed) test_abort_ends_everything_on_both_ends(seed);
  test_slots_are_freed_when_both_ends_have_closed();
  test_push_into_a_free_slot_passes_one_whose_slot_is_in_use();
  test_streams_are_not_given_waits_that_are_over();
  test_slots_are_unmapped_when_larger_ones_are_mapped_and_not_by_a_push();
  test_a_pusher_has_one_to_four_streams();
  test_push_that_was_never_granted_is_refused();
  test_foreign_bytes_are_refused();
  CHECK(cuda_fake::num_lost_waits() == 0);
}
