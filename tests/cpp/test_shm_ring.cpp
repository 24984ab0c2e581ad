// Rings: messages of any size between threads and between processes, room that runs out, ends that
// close, die or are told to stop.
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "file_limit.h"
#include "shared_folder.h"
#include "shm/courier.h"
#include "shm/ring_reader.h"
#include "shm/ring_writer.h"

namespace pipert {
namespace {

using std::chrono::milliseconds;
constexpr std::chrono::microseconds kSpin{50};
constexpr std::size_t kKilo = 1024;

// What message `number` holds: bytes that no other message has at these places.
std::string message(std::size_t number, std::size_t num_bytes) {
  std::mt19937 random(static_cast<unsigned>(number));
  std::string bytes(num_bytes, '\0');
  for (std::size_t i = 0; i < num_bytes; i += 61) bytes[i] = static_cast<char>('a' + random() % 26);
  return bytes;
}

std::size_t size_of(std::size_t number, std::size_t max_bytes) {
  std::mt19937 random(static_cast<unsigned>(number) + 1000);
  const std::size_t top = number % 3 == 0 ? max_bytes : std::min<std::size_t>(max_bytes, 4000);
  return 1 + random() % top;
}

void fill(char* destination, const std::string& bytes, const RingWriter::Progress& progress) {
  const std::size_t half = bytes.size() / 2;
  std::memcpy(destination, bytes.data(), half);
  if (progress && bytes.size() % 2 == 0) progress(half);
  std::memcpy(destination + half, bytes.data() + half, bytes.size() - half);
}

// As a channel does it: whole if there is room, through the courier if there isn't.
class Sending {
 public:
  explicit Sending(std::shared_ptr<Segment> segment) : writer(std::move(segment), kSpin) {}
  ~Sending() { writer.abort(); }

  void send(const std::string& bytes) {
    const auto fill_it = [&](char* to, const RingWriter::Progress& progress) {
      fill(to, bytes, progress);
    };
    if (!courier.is_busy() && writer.try_write(bytes.size(), fill_it)) return;
    ++num_brought;
    Courier::Parcel parcel{std::make_unique<char[]>(bytes.size()), bytes.size()};
    std::memcpy(parcel.bytes.get(), bytes.data(), bytes.size());
    courier.bring(std::move(parcel));
  }

  RingWriter writer;
  Courier courier{writer};
  int num_brought = 0;
};

std::string receive(RingReader& reader) {
  const auto size = reader.wait_for_message();
  CHECK(size.has_value());
  std::string bytes(*size, '?');
  CHECK(reader.read(bytes.data()));
  return bytes;
}

void receive_all(RingReader& reader, std::size_t count, std::size_t max_bytes) {
  for (std::size_t i = 0; i < count; ++i)
    CHECK(receive(reader) == message(i, size_of(i, max_bytes)));
}

void send_all(Sending& sending, std::size_t count, std::size_t max_bytes, std::size_t in_flight) {
  for (std::size_t i = 0; i < count; ++i) {
    if (i >= in_flight) CHECK(sending.writer.wait_until_taken(i + 1 - in_flight));
    sending.send(message(i, size_of(i, max_bytes)));
  }
  CHECK(sending.writer.wait_until_taken(count));
}

struct Pair {
  explicit Pair(const std::string& folder)
      : segment(make_ring_segment(folder)), sending(segment), reader(segment, kSpin) {
    segment->remove_name();
  }
  std::shared_ptr<Segment> segment;
  Sending sending;
  RingReader reader;
};

// One mapping for both threads, so that the thread sanitizer sees that they share it.
void test_threads_exchange_messages_of_any_size() {
  const SharedFolder folder;
  Pair pair(folder.path());
  std::thread receiver([&] { receive_all(pair.reader, 400, 900 * kKilo); });
  send_all(pair.sending, 400, 900 * kKilo, 3);
  receiver.join();
  CHECK(pair.sending.num_brought == 0);
}

void test_messages_that_find_no_room_come_in_pieces_and_in_order() {
  const SharedFolder folder;
  Pair pair(folder.path());
  const FileLimit limit(600 * kKilo);
  std::thread receiver([&] { receive_all(pair.reader, 200, 900 * kKilo); });
  send_all(pair.sending, 200, 900 * kKilo, 5);
  receiver.join();
  CHECK(pair.sending.num_brought > 10);
}

void test_sender_never_waits_however_many_messages_nobody_reads() {
  const SharedFolder folder;
  Pair pair(folder.path());
  const std::size_t count = 2 * kNumPieces;
  for (std::size_t i = 0; i < count; ++i) pair.sending.send(message(i, size_of(i, 5000)));
  CHECK(pair.sending.num_brought > 0);  // there was no entry left for them
  receive_all(pair.reader, count, 5000);
  CHECK(pair.sending.writer.wait_until_taken(count));
}

void test_room_is_used_again_and_given_back_when_it_is_idle() {
  const SharedFolder folder;
  Pair pair(folder.path());
  const auto run_pass = [&](std::size_t num_bytes) {
    pair.sending.writer.begin_pass();
    for (std::size_t i = 0; i < 6; ++i) {
      pair.sending.send(message(i, num_bytes));
      CHECK(receive(pair.reader) == message(i, num_bytes));
    }
    return pair.sending.writer.num_bytes();
  };
  const std::size_t small = run_pass(4 * kKilo);
  const std::size_t large = run_pass(3000 * kKilo);
  CHECK(large > small + 3000 * kKilo && large < small + 4000 * kKilo);  // one block for all six
  CHECK(run_pass(2900 * kKilo) == large);
  for (int i = 0; i < BlockPool::kKeptPasses; ++i) run_pass(4 * kKilo);
  CHECK(run_pass(4 * kKilo) == small);
  CHECK(run_pass(3000 * kKilo) == large);
}

void test_abort_ends_the_waits_of_both_ends() {
  const SharedFolder folder;
  {
    Pair pair(folder.path());
    std::thread reading([&] { CHECK(!pair.reader.wait_for_message().has_value()); });
    std::this_thread::sleep_for(milliseconds(5));
    pair.reader.abort();
    reading.join();
    CHECK_THROWS(pair.sending.writer.wait_until_taken(1), ConnectionLost);
  }
  Pair pair(folder.path());
  pair.sending.send("unread");
  std::thread writing([&] { CHECK(!pair.sending.writer.wait_until_taken(1)); });
  std::this_thread::sleep_for(milliseconds(5));
  pair.sending.writer.abort();
  writing.join();
  CHECK(receive(pair.reader) == "unread");  // what came before counts
  CHECK_THROWS(pair.reader.wait_for_message(), ConnectionLost);
}

void test_sleeping_reader_is_woken_each_time() {
  const SharedFolder folder;
  Pair pair(folder.path());
  std::thread receiver([&] { receive_all(pair.reader, 300, 100); });
  for (std::size_t i = 0; i < 300; ++i) {
    if (i % 3 == 0) std::this_thread::sleep_for(2 * kSpin);  // it sleeps by now
    pair.sending.send(message(i, size_of(i, 100)));
    CHECK(pair.sending.writer.wait_until_taken(i + 1));
  }
  receiver.join();
}

// A profiler's signals, say, which end every sleep early.
void test_signals_do_not_keep_a_waiter_from_looking_around() {
  struct sigaction action{};
  action.sa_handler = [](int) {};
  CHECK(sigaction(SIGUSR1, &action, nullptr) == 0);
  Doorbell bell;
  std::atomic<int> num_looks{0};
  std::atomic<bool> is_ready{false};
  std::thread waiting([&] {
    bell.wait(std::chrono::microseconds(0), [&] { return is_ready.load(); }, [&] { ++num_looks; });
  });
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (num_looks.load() < 3 && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(Doorbell::kGlance / 10);
    CHECK(pthread_kill(waiting.native_handle(), SIGUSR1) == 0);
  }
  is_ready.store(true);
  bell.ring();
  waiting.join();
  CHECK(num_looks.load() >= 3);
}

// --- two processes -----------------------------------------------------------------------------

template <typename Life>
pid_t start_child(const Life& life) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    life();
    _exit(0);
  }
  return child;
}

void check_child(pid_t child) {
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

void test_processes_send_to_each_other_at_once(std::size_t file_limit) {
  const SharedFolder folder;
  std::shared_ptr<Segment> there = make_ring_segment(folder.path());
  std::shared_ptr<Segment> back = make_ring_segment(folder.path());
  const std::size_t count = 60;
  const std::size_t max_bytes = 1500 * kKilo;
  const auto exchange = [&](Sending& sending, RingReader& reader) {
    for (std::size_t i = 0; i < count; ++i) {  // both send first: neither may wait for the other
      sending.send(message(i, size_of(i, max_bytes)));
      CHECK(receive(reader) == message(i, size_of(i, max_bytes)));
    }
    CHECK(sending.writer.wait_until_taken(count));
  };
  const pid_t child = start_child([&] {
    std::optional<FileLimit> limit;
    if (file_limit > 0) limit.emplace(file_limit);
    RingReader reader(open_ring_segment(there->name(), folder.path()), kSpin);
    Sending sending(open_ring_segment(back->name(), folder.path()));
    exchange(sending, reader);
  });
  {
    Sending sending(there);
    RingReader reader(back, kSpin);
    exchange(sending, reader);
    check_child(child);
  }
  CHECK(folder.num_files() == 0);  // the openers have removed the names
}

// Kills a child that sends and receives after `delay`, wherever it is then.
void test_death_is_told_within_a_second_and_leaves_nothing(std::chrono::microseconds delay) {
  const SharedFolder folder;
  std::shared_ptr<Segment> there = make_ring_segment(folder.path());
  std::shared_ptr<Segment> back = make_ring_segment(folder.path());
  const pid_t child = start_child([&] {
    RingReader reader(open_ring_segment(there->name(), folder.path()), kSpin);
    Sending sending(open_ring_segment(back->name(), folder.path()));
    sending.send("open");
    while (true) sending.send(receive(reader));
  });
  Sending sending(there);
  RingReader reader(back, kSpin);
  CHECK(receive(reader) == "open");
  auto killed = std::chrono::steady_clock::time_point::max();
  std::thread killer([&] {
    std::this_thread::sleep_for(delay);
    killed = std::chrono::steady_clock::now();
    CHECK(kill(child, SIGKILL) == 0);
  });
  try {
    for (std::size_t i = 0;; ++i) {
      const std::string sent = message(i, size_of(i, 300 * kKilo));
      sending.send(sent);
      CHECK(receive(reader) == sent);
    }
  } catch (const ConnectionLost& lost) {
    CHECK(std::string(lost.what()).find("is gone") != std::string::npos);
  }
  killer.join();
  CHECK(std::chrono::steady_clock::now() - killed < std::chrono::seconds(1));
  CHECK(waitpid(child, nullptr, 0) == child);
  CHECK(folder.num_files() == 0);
}

// It may write its last message and end while this end looks for it.
void test_what_came_before_the_death_counts_however_late_it_is_seen() {
  const SharedFolder folder;
  const std::shared_ptr<Segment> segment = make_ring_segment(folder.path());
  const pid_t child = start_child([&] {
    RingWriter writer(open_ring_segment(segment->name(), folder.path()), kSpin);
    _exit(0);  // as if killed: it closes nothing
  });
  check_child(child);
  RingEnd end(segment, &RingLayout::reader, &RingLayout::writer, std::chrono::microseconds(0));
  int num_asked = 0;
  CHECK(end.wait([&] { return ++num_asked > 3; }));  // the third time is before the look at /proc
  CHECK_THROWS(end.wait([] { return false; }), ProcessGone);
}

void test_foreign_bytes_and_second_readers_are_refused() {
  const SharedFolder folder;
  const std::shared_ptr<Segment> other = Segment::create(sizeof(RingLayout), folder.path());
  CHECK_THROWS(RingReader(other, kSpin), SegmentError);
  const Pair pair(folder.path());
  CHECK_THROWS(RingReader(pair.segment, kSpin), SegmentError);
}

void test_piece_outside_of_the_segment_is_refused() {
  const SharedFolder folder;
  Pair pair(folder.path());
  pair.sending.send("a message");
  auto* layout = reinterpret_cast<RingLayout*>(pair.segment->data());
  std::string bytes(100, '?');
  CHECK(pair.reader.wait_for_message() == 9);
  layout->pieces[0].offset = Segment::kMaxBytes - 1;
  CHECK_THROWS(pair.reader.read(bytes.data()), ValueError);
  layout->pieces[0].offset = 0;
  layout->pieces[0].num_bytes = 10;
  CHECK_THROWS(pair.reader.read(bytes.data()), ValueError);
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  // Those that fork come first: no thread of this process has run yet.
  test_processes_send_to_each_other_at_once(0);
  test_processes_send_to_each_other_at_once(600 * 1024);
  for (int i = 0; i < 12; ++i) {
    test_death_is_told_within_a_second_and_leaves_nothing(
        std::chrono::microseconds(i < 2 ? 0 : 300 * i * i + 77));
  }
  test_what_came_before_the_death_counts_however_late_it_is_seen();
  test_threads_exchange_messages_of_any_size();
  test_messages_that_find_no_room_come_in_pieces_and_in_order();
  test_sender_never_waits_however_many_messages_nobody_reads();
  test_room_is_used_again_and_given_back_when_it_is_idle();
  test_abort_ends_the_waits_of_both_ends();
  test_sleeping_reader_is_woken_each_time();
  test_signals_do_not_keep_a_waiter_from_looking_around();
  test_foreign_bytes_and_second_readers_are_refused();
  test_piece_outside_of_the_segment_is_refused();
}
