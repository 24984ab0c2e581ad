// The device floor's HandlePool, which is free of torch: events and streams, used again.

#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "device/handle_pool.h"

namespace pipert {
namespace {

// Handles are addresses in a list that nobody reads.
class Maker {
 public:
  HandlePool::Handle operator()() { return &places_[num_made_++]; }
  int num_made() const { return num_made_; }

 private:
  std::vector<char> places_ = std::vector<char>(100'000);
  int num_made_ = 0;
};

void test_what_came_back_is_used_again_and_nothing_else_is_made() {
  Maker maker;
  HandlePool pool([&] { return maker(); });
  void* const first = pool.take();
  void* const second = pool.take();
  CHECK(first != second);
  pool.give_back(first);
  pool.give_back(second);
  CHECK(pool.take() == second);
  CHECK(pool.take() == first);
  CHECK(maker.num_made() == 2);
  CHECK(pool.num_made() == 2);
}

void test_a_failure_to_make_one_leaves_the_pool_as_it_was() {
  bool fails = true;
  char place = 0;
  HandlePool pool([&]() -> void* {
    if (fails) throw std::runtime_error("no more events");
    return &place;
  });
  bool threw = false;
  try {
    (void)pool.take();
  } catch (const std::runtime_error&) {
    threw = true;
  }
  CHECK(threw);
  CHECK(pool.num_made() == 0);
  fails = false;
  CHECK(pool.take() == &place);
}

void test_no_two_threads_have_the_same_one_at_a_time() {
  std::mutex mutex;
  Maker maker;
  HandlePool pool([&] {
    const std::lock_guard lock(mutex);
    return maker();
  });
  std::set<void*> held;
  bool clashed = false;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5000; ++i) {
        void* const handle = pool.take();
        {
          const std::lock_guard lock(mutex);
          clashed = clashed || !held.insert(handle).second;
        }
        {
          const std::lock_guard lock(mutex);
          held.erase(handle);
        }
        pool.give_back(handle);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(!clashed);
  CHECK(pool.num_made() <= 4);
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::test_what_came_back_is_used_again_and_nothing_else_is_made();
  pipert::test_a_failure_to_make_one_leaves_the_pool_as_it_was();
  pipert::test_no_two_threads_have_the_same_one_at_a_time();
}
