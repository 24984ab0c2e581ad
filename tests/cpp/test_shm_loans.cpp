// Loans: messages that stay where the writer put them, for as long as the reader keeps them.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
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

constexpr std::chrono::microseconds kSpin{50};
constexpr std::size_t kLarge = std::size_t{200} << 10;  // no first block holds it

std::string message(std::size_t number, std::size_t num_bytes = kLarge) {
  std::string bytes(num_bytes, static_cast<char>('a' + number % 26));
  bytes.replace(0, 8, concat("m", 1000000 + number));
  return bytes;
}

struct Kept {
  std::shared_ptr<char> bytes;
  std::size_t number;

  bool is_whole() const { return std::memcmp(bytes.get(), message(number).data(), kLarge) == 0; }
};

struct Pair {
  explicit Pair(std::shared_ptr<Segment> ring)
      : segment(std::move(ring)), writer(segment, kSpin), reader(segment, kSpin) {
    segment->remove_name();
  }
  explicit Pair(const std::string& folder) : Pair(make_ring_segment(folder)) {}
  ~Pair() { writer.abort(); }

  void send(const std::string& bytes) {
    const auto fill = [&](char* destination, const RingWriter::Progress& /*progress*/) {
      std::memcpy(destination, bytes.data(), bytes.size());
    };
    if (!courier.is_busy() && writer.try_write(bytes.size(), fill)) return;
    Courier::Parcel parcel{std::make_unique<char[]>(bytes.size()), bytes.size()};
    std::memcpy(parcel.bytes.get(), bytes.data(), bytes.size());
    courier.bring(std::move(parcel));
  }
  std::string read() {
    const auto size = reader.wait_for_message();
    CHECK(size.has_value());
    std::string bytes(*size, '?');
    CHECK(reader.read(bytes.data()));
    return bytes;
  }
  std::shared_ptr<char> borrow() {
    CHECK(reader.wait_for_message().has_value());
    return reader.borrow();
  }

  std::shared_ptr<Segment> segment;
  RingWriter writer;
  RingReader reader;
  Courier courier{writer};
};

void test_lent_messages_are_kept_and_returned_in_any_order() {
  const SharedFolder folder;
  Pair pair(folder.path());
  std::mt19937 random(7);
  std::vector<Kept> kept;
  for (std::size_t i = 0; i < 600; ++i) {
    pair.send(message(i));
    kept.push_back({pair.borrow(), i});
    CHECK(kept.back().bytes != nullptr);
    while (kept.size() > random() % 12) {
      const auto at = kept.begin() + static_cast<std::ptrdiff_t>(random() % kept.size());
      CHECK(at->is_whole());
      kept.erase(at);
    }
  }
  // Used again: as many blocks as were kept at once, of 256 KB at most, beside the first ones.
  CHECK(pair.writer.num_bytes() <= (13 << 18) + (1 << 18));
}

void test_memory_that_is_lent_is_not_written_again() {
  const SharedFolder folder;
  Pair pair(folder.path());
  pair.send(message(0));
  const Kept first{pair.borrow(), 0};
  for (std::size_t i = 1; i < 50; ++i) {
    pair.writer.begin_pass();  // idle memory goes back to the system: this one is none
    pair.send(message(i));
    CHECK(pair.borrow() != first.bytes);
  }
  CHECK(first.is_whole());
}

void test_small_messages_and_those_that_come_in_pieces_are_not_lent() {
  const SharedFolder folder;
  Pair pair(folder.path());
  pair.send(message(1, 1000));
  CHECK(pair.borrow() == nullptr);
  CHECK(pair.read() == message(1, 1000));
  const FileLimit limit(1);
  pair.send(message(2));  // through the courier
  CHECK(pair.borrow() == nullptr);
  CHECK(pair.read() == message(2));
}

// A reader that keeps everything for ever must still get what comes next.
void test_small_messages_in_large_blocks_are_not_lent() {
  const SharedFolder folder;
  Pair pair(folder.path());
  pair.send(message(0, std::size_t{1} << 20));
  CHECK(pair.borrow() != nullptr);  // and returns it at once: the block is free
  constexpr std::size_t kSmall = 1000;
  constexpr std::size_t kCount = 5;  // more than there are first blocks
  for (std::size_t i = 0; i < kCount; ++i) pair.send(message(i, kSmall));
  for (std::size_t i = 0; i < kCount; ++i) {
    CHECK(pair.borrow() == nullptr);
    CHECK(pair.read() == message(i, kSmall));
  }
}

void test_messages_arrive_however_much_the_reader_keeps() {
  const SharedFolder folder;
  Pair pair(folder.path());
  const FileLimit limit(std::size_t{1} << 20);  // as a full /dev/shm
  std::vector<Kept> kept;
  std::size_t num_read = 0;
  for (std::size_t i = 0; i < 20; ++i) {
    pair.send(message(i));
    if (std::shared_ptr<char> lent = pair.borrow()) {
      kept.push_back({std::move(lent), i});
    } else {
      CHECK(pair.read() == message(i));
      ++num_read;
    }
  }
  CHECK(!kept.empty() && num_read > 10);
  for (const Kept& message : kept) CHECK(message.is_whole());
}

void test_no_more_messages_are_lent_than_there_are_flags() {
  const SharedFolder folder;
  Pair pair(folder.path());
  const std::size_t count = kNumLoans + 20;
  std::vector<std::shared_ptr<char>> kept;
  for (std::size_t i = 0; i < count; ++i) {
    pair.send(message(i, std::size_t{70} << 10));
    if (std::shared_ptr<char> lent = pair.borrow()) {
      kept.push_back(std::move(lent));
    } else {
      CHECK(pair.read() == message(i, std::size_t{70} << 10));
    }
  }
  CHECK(kept.size() == kNumLoans);
}

void test_loan_outlives_both_ends_and_is_returned_from_any_thread() {
  const SharedFolder folder;
  Kept kept{nullptr, 3};
  {
    Pair pair(folder.path());
    pair.send(message(3));
    kept.bytes = pair.borrow();
  }
  CHECK(kept.is_whole());
  kept.bytes.get()[0] = 'x';  // it may be changed
  std::thread([&] { kept.bytes.reset(); }).join();
}

void test_what_is_kept_keeps_no_more_than_itself_once_the_writer_is_gone() {
  const SharedFolder folder;
  std::shared_ptr<Segment> segment = make_ring_segment(folder.path());
  const int file = open((folder.path() + "/" + segment->name()).c_str(), O_RDONLY | O_CLOEXEC);
  CHECK(file >= 0);
  std::shared_ptr<char> kept;
  {
    Pair pair(segment);
    segment.reset();
    std::vector<std::shared_ptr<char>> others;
    for (std::size_t i = 0; i < 20; ++i) {
      pair.send(message(i));
      others.push_back(pair.borrow());
    }
    kept = others[7];
  }
  struct stat status{};
  CHECK(fstat(file, &status) == 0);
  close(file);
  constexpr std::size_t kFirst = std::size_t{256} << 10;  // the first blocks, and the ring itself
  CHECK(static_cast<std::size_t>(status.st_blocks) * 512 < kFirst + 2 * kLarge);
  CHECK((Kept{kept, 7}.is_whole()));
}

void test_message_that_was_lent_may_be_read() {
  const SharedFolder folder;
  Pair pair(folder.path());
  for (std::size_t i = 0; i < 20; ++i) {
    pair.send(message(i));
    CHECK(pair.read() == message(i));
  }
  CHECK(pair.writer.num_bytes() <= (1 << 18) + (1 << 18));  // one block, and the first ones
}

void test_fork_returns_nothing() {
  const SharedFolder folder;
  Pair pair(folder.path());
  pair.send(message(0));
  std::shared_ptr<char> lent = pair.borrow();
  const char* const place = lent.get();
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    lent.reset();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  pair.send(message(1));
  CHECK(pair.borrow().get() != place);
}

void test_threads_borrow_and_return_while_others_are_written() {
  const SharedFolder folder;
  Pair pair(folder.path());
  const std::size_t count = 400;
  std::thread receiver([&] {
    std::vector<Kept> kept;
    for (std::size_t i = 0; i < count; ++i) {
      kept.push_back({pair.borrow(), i});
      if (kept.size() == 4) {
        for (const Kept& message : kept) CHECK(message.is_whole());
        kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(i % 3));
        kept.erase(kept.begin());
      }
    }
  });
  for (std::size_t i = 0; i < count; ++i) {
    if (i >= 3) CHECK(pair.writer.wait_until_taken(i - 2));
    pair.send(message(i));
  }
  receiver.join();
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  test_fork_returns_nothing();  // no thread has run yet
  test_lent_messages_are_kept_and_returned_in_any_order();
  test_memory_that_is_lent_is_not_written_again();
  test_small_messages_and_those_that_come_in_pieces_are_not_lent();
  test_small_messages_in_large_blocks_are_not_lent();
  test_messages_arrive_however_much_the_reader_keeps();
  test_no_more_messages_are_lent_than_there_are_flags();
  test_loan_outlives_both_ends_and_is_returned_from_any_thread();
  test_what_is_kept_keeps_no_more_than_itself_once_the_writer_is_gone();
  test_message_that_was_lent_may_be_read();
  test_threads_borrow_and_return_while_others_are_written();
}
