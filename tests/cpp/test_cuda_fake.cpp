// The fake of CUDA: what is ordered comes out right however late streams run, and each of the
// mistakes that it is there for is seen.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/cuda_event.h"
#include "cuda/cuda_stream.h"
#include "cuda/device_memory.h"
#include "cuda/imported_memory.h"
#include "cuda_fake.h"

namespace pipert {
namespace {

constexpr std::size_t kBytes = 1000;
constexpr int kTries = 200;

// Memory with a value of its own everywhere, set by the stream.
void fill(char* memory, int value, cuda::Stream stream) {
  static std::vector<std::string> sources(256);  // stay until every stream has passed
  std::string& source = sources[static_cast<std::size_t>(value)];
  if (source.empty()) source.assign(kBytes, static_cast<char>(value));
  cuda::copy_to_device(memory, source.data(), kBytes, stream);
}

bool holds(const char* memory, int value) {
  return std::string(memory, kBytes) == std::string(kBytes, static_cast<char>(value));
}

// One producer, one consumer; `is_right`: whether the consumer saw what it was to see, in each of
// many runs.
template <typename Run>
int num_right(const Run& run) {
  int count = 0;
  for (int i = 0; i < kTries; ++i) {
    cuda_fake::set_delays(static_cast<unsigned>(i) * 7 + 1, 200);
    count += run() ? 1 : 0;
  }
  return count;
}

// `is_ordered`: the consumer waits for the producer's event.
bool copy_behind_event(bool is_ordered, bool is_recorded) {
  DeviceMemory source(kBytes);
  DeviceMemory destination(kBytes);
  const CudaEvent produced;
  const CudaStream producer;
  const CudaStream consumer;
  fill(source.data(), 1, producer.get());
  if (is_recorded) cuda::record(produced.get(), producer.get());
  if (is_ordered) cuda::wait(consumer.get(), produced.get());
  cuda::copy_on_device(destination.data(), source.data(), kBytes, consumer.get());
  cuda::synchronize(producer.get());
  cuda::synchronize(consumer.get());
  return holds(destination.data(), 1);
}

void test_event_orders_streams() {
  CHECK(num_right([] { return copy_behind_event(true, true); }) == kTries);
}

void test_missing_wait_is_a_wrong_result() {
  CHECK(num_right([] { return copy_behind_event(false, true); }) < kTries);
}

void test_wait_for_an_event_never_recorded_is_lost_and_counted() {
  const int before = cuda_fake::num_lost_waits();
  CHECK(num_right([] { return copy_behind_event(true, false); }) < kTries);
  CHECK(cuda_fake::num_lost_waits() == before + kTries);
}

void test_planted_errors_strike_and_show() {
  cuda_fake::Plant no_wait;
  no_wait.leaves_out_wait = [](cuda::Stream waiter, cuda::Stream recorded_on) {
    return waiter != recorded_on;
  };
  cuda_fake::Plant early;
  early.records_early = [](cuda::Stream) { return 1; };
  for (const cuda_fake::Plant& plant : {no_wait, early}) {
    cuda_fake::plant(plant);
    CHECK(num_right([] { return copy_behind_event(true, true); }) < kTries);
    CHECK(cuda_fake::num_planted() == kTries);
  }
  cuda_fake::plant({});
  CHECK(num_right([] { return copy_behind_event(true, true); }) == kTries);
  CHECK(cuda_fake::num_planted() == 0);
}

// Null is the default stream of the device that is current when the call is made.
void test_each_device_has_a_default_stream() {
  std::atomic<bool> may_end = false;
  cuda_fake::launch(nullptr, [&] {
    while (!may_end) std::this_thread::yield();
  });
  CHECK(!cuda::is_idle(nullptr));
  cuda_fake::set_current_device(1);
  CHECK(cuda::is_idle(nullptr));
  cuda_fake::set_current_device(0);
  may_end = true;
  cuda::synchronize(static_cast<cuda::Stream>(nullptr));
}

void test_event_of_another_device_is_an_error() {
  const CudaStream stream;
  cuda_fake::set_current_device(1);
  const CudaEvent event;
  const CudaStream other;
  cuda_fake::set_current_device(0);
  CHECK_THROWS(cuda::record(event.get(), stream.get()), CudaError);
  cuda::record(event.get(), other.get());
  cuda::wait(stream.get(), event.get());  // whereas that may be of any
  cuda::synchronize(stream.get());
  CHECK_THROWS(cuda_fake::set_current_device(cuda_fake::kNumDevices), CudaError);
}

void test_timing_events_take_the_streams_time() {
  const CudaStream stream;
  const cuda::Event first = cuda::create_timing_event();
  const cuda::Event second = cuda::create_timing_event();
  const CudaEvent plain;
  CHECK_THROWS(cuda::milliseconds_between(first, second), CudaError);
  cuda::record(first, stream.get());
  cuda_fake::launch(stream.get(), [] { usleep(2000); });
  cuda::record(second, stream.get());
  cuda::record(plain.get(), stream.get());
  cuda::synchronize(second);
  CHECK(cuda::milliseconds_between(first, second) >= 2.0F);
  cuda::synchronize(plain.get());
  CHECK_THROWS(cuda::milliseconds_between(first, plain.get()), CudaError);
  cuda::destroy_event(first);
  cuda::destroy_event(second);
}

struct Words {
  std::uint32_t arrived = 0;
  std::uint32_t freed = 0;
};

// Two messages through one slot.
bool send_two(bool waits_for_credit, bool writes_flag_last) {
  DeviceMemory sources(2 * kBytes);
  DeviceMemory slot(kBytes);
  DeviceMemory results(2 * kBytes);
  Words words;
  const CudaStream sender;
  const CudaStream receiver;
  for (int i = 0; i < 2; ++i) fill(sources.data() + i * kBytes, i + 1, sender.get());
  cuda::synchronize(sender.get());
  for (std::uint32_t i = 0; i < 2; ++i) {
    if (waits_for_credit) cuda::wait_value(sender.get(), &words.freed, i);
    if (!writes_flag_last) cuda::write_value(sender.get(), &words.arrived, i + 1);
    cuda::copy_on_device(slot.data(), sources.data() + i * kBytes, kBytes, sender.get());
    if (writes_flag_last) cuda::write_value(sender.get(), &words.arrived, i + 1);
    cuda::wait_value(receiver.get(), &words.arrived, i + 1);
    cuda::copy_on_device(results.data() + i * kBytes, slot.data(), kBytes, receiver.get());
    cuda::write_value(receiver.get(), &words.freed, i + 1);
  }
  cuda::synchronize(sender.get());
  cuda::synchronize(receiver.get());
  return holds(results.data(), 1) && holds(results.data() + kBytes, 2);
}

void test_words_order_streams() {
  CHECK(num_right([] { return send_two(true, true); }) == kTries);
}

void test_slot_used_again_without_credit_is_a_wrong_result() {
  CHECK(num_right([] { return send_two(false, true); }) < kTries);
}

void test_flag_written_before_the_copy_is_a_wrong_result() {
  CHECK(num_right([] { return send_two(true, false); }) < kTries);
}

void test_waits_for_words_wrap_around() {
  std::uint32_t word = 0xFFFFFFFE;
  const CudaStream stream;
  cuda::wait_value(stream.get(), &word, 0xFFFFFFFD);
  cuda::synchronize(stream.get());
  cuda::wait_value(stream.get(), &word, 1);
  CHECK(!stream.drain(std::chrono::milliseconds(5)));
  std::atomic_ref(word).store(2);
  cuda::synchronize(stream.get());
}

void test_memory_is_poisoned_when_allocated_and_when_freed() {
  const std::string poison(kBytes, static_cast<char>(cuda_fake::kPoison));
  std::optional<DeviceMemory> memory(kBytes);
  CHECK(std::string(memory->data(), kBytes) == poison);
  std::memset(memory->data(), 1, kBytes);
  const ImportedMemory imported(memory->handle());
  CHECK(holds(imported.data(), 1));
  memory.reset();
  CHECK(std::string(imported.data(), kBytes) == poison);  // who still reads it sees that
}

void test_who_closes_an_import_waits_for_all_streams() {
  const DeviceMemory memory(kBytes);
  std::optional<ImportedMemory> imported(memory.handle());
  std::uint32_t word = 0;
  const CudaStream stream;
  cuda::wait_value(stream.get(), &word, 1);
  std::atomic<bool> is_closed = false;
  std::thread closer([&] {
    imported.reset();
    is_closed = true;
  });
  CHECK(!stream.drain(std::chrono::milliseconds(5)) && !is_closed);
  std::atomic_ref(word).store(1);
  closer.join();
}

void test_another_process_imports_memory() {
  const DeviceMemory memory(kBytes);
  std::memset(memory.data(), 1, kBytes);
  const pid_t child = fork();
  if (child == 0) {
    const ImportedMemory imported(memory.handle());
    const CudaStream stream;
    const bool is_right = holds(imported.data(), 1);
    fill(imported.data(), 2, stream.get());
    cuda::synchronize(stream.get());
    _exit(is_right ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(holds(memory.data(), 2));
}

void test_memory_that_is_not_there_is_an_error() {
  std::optional<DeviceMemory> memory(kBytes);
  const cuda::MemoryHandle handle = memory->handle();
  char* const data = memory->data();
  memory.reset();
  CHECK_THROWS(cuda::import_memory(handle), CudaError);
  CHECK_THROWS(cuda::deallocate(data), CudaError);
  CHECK_THROWS(cuda::close_imported(data), CudaError);
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  test_another_process_imports_memory();
  test_event_orders_streams();
  test_missing_wait_is_a_wrong_result();
  test_wait_for_an_event_never_recorded_is_lost_and_counted();
  test_planted_errors_strike_and_show();
  test_each_device_has_a_default_stream();
  test_event_of_another_device_is_an_error();
  test_timing_events_take_the_streams_time();
  test_words_order_streams();
  test_slot_used_again_without_credit_is_a_wrong_result();
  test_flag_written_before_the_copy_is_a_wrong_result();
  test_waits_for_words_wrap_around();
  test_memory_is_poisoned_when_allocated_and_when_freed();
  test_memory_that_is_not_there_is_an_error();
  test_who_closes_an_import_waits_for_all_streams();
  CHECK(cuda_fake::num_allocations() == 0 && cuda_fake::num_imports() == 0);
}
