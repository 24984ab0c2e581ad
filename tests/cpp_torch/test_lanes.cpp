// Lanes, marks and messages one at a time, on the fake of CUDA; and the fake of torch's allocator,
// which must be as strict as torch's own.
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "hash_kernel.h"

// Behind torch's headers: they have a CHECK of their own.
#include "caching_allocator_fake.h"
#include "check.h"
#include "device/lane.h"
#include "transport/local_channel.h"

namespace pipert {
namespace {

constexpr int kTries = 200;
const c10::Device kFirst(c10::kCUDA, 0);
const c10::Device kSecond(c10::kCUDA, 1);
const c10::Device kCpu(c10::kCPU);

// Whether `run` came out right, in each of many runs.
template <typename Run>
int num_right(const Run& run) {
  int count = 0;
  for (int i = 0; i < kTries; ++i) {
    cuda_fake::set_delays(static_cast<unsigned>(i), 100);
    count += run() ? 1 : 0;
  }
  return count;
}

std::unique_ptr<Lane> compute_lane(const c10::Device& device) {
  return make_lane(device, LanePriority::kCompute);
}

void synchronize(const c10::Device& device) {
  cuda::synchronize(cuda_fake::current_stream(device.index()));
}

Words words_in(const at::Tensor& tensor) {
  Words words;
  std::memcpy(words.data(), tensor.const_data_ptr(), sizeof(words));
  return words;
}

const Words kExpected = computed(Kernel::kBatch, 1);

at::Tensor launch_expected(const c10::Device& device) {
  at::Tensor tensor = make_words(device);
  launch(Kernel::kBatch, 1, tensor);
  return tensor;
}

// What a lane reads of another one's result.
bool read_behind_mark(bool waits) {
  const auto producer = compute_lane(kFirst);
  const auto consumer = compute_lane(kFirst);
  const auto mark = producer->make_mark();
  at::Tensor made;
  {
    const auto current = producer->make_current();
    made = launch_expected(kFirst);
    producer->record(*mark);
  }
  Words read;
  {
    const auto current = consumer->make_current();
    if (waits) consumer->wait(*mark);
    consumer->adopt(made);
    launch_to(read.data(), 0, Kernel::kCopy, 0, made);
    synchronize(kFirst);
  }
  return read == kExpected;
}

void test_mark_orders_lanes() {
  CHECK(num_right([] { return read_behind_mark(true); }) == kTries);
  CHECK(num_right([] { return read_behind_mark(false); }) < kTries);
}

void test_wait_for_a_mark_never_recorded_is_refused() {
  const auto lane = compute_lane(kFirst);
  const auto mark = lane->make_mark();
  CHECK_THROWS(lane->wait(*mark), c10::Error);
  CHECK(cuda_fake::num_lost_waits() == 0);
}

// The default streams of all devices have one handle: a lane over one knows its device.
void test_callers_lane_is_of_its_device_whatever_device_is_current() {
  const auto is_right = [] {
    const auto lane = compute_lane(kSecond);
    const auto caller = current_lane(kSecond);
    at::Tensor made;
    {
      const auto current = lane->make_current();
      made = launch_expected(kSecond);
      const auto mark = lane->make_mark();
      lane->record(*mark);
      CHECK(cuda_fake::current_device() == 1);
      cuda_fake::set_current_device(0);
      caller->wait(*mark);
    }
    CHECK(cuda_fake::current_device() == 0);
    Words read;
    launch_to(read.data(), 1, Kernel::kCopy, 0, made);
    const auto mark = caller->make_mark();
    caller->record(*mark);
    const auto other = compute_lane(kSecond);
    other->wait(*mark);
    cuda::synchronize(cuda_fake::resolve(nullptr, 1));
    return read == kExpected;
  };
  CHECK(num_right(is_right) == kTries);
}

void test_lane_takes_over_the_idle_stream_of_one_that_went() {
  const auto stream_of = [](Lane& lane) {
    const auto current = lane.make_current();
    return cuda_fake::current_stream(0);
  };
  auto lane = compute_lane(kFirst);
  const cuda::Stream stream = stream_of(*lane);
  const auto other = compute_lane(kFirst);
  CHECK(stream_of(*other) != stream);
  cuda_fake::launch(stream, [] { usleep(2000); });
  lane.reset();
  CHECK(cuda::is_idle(stream));
  lane = compute_lane(kFirst);
  CHECK(stream_of(*lane) == stream);
  const auto transfer = make_lane(kFirst, LanePriority::kTransfer);
  CHECK(cuda_fake::priority_of(stream_of(*transfer)) == cuda::StreamPriority::kHighest);
  CHECK(cuda_fake::priority_of(stream) == cuda::StreamPriority::kLowest);
}

// One message, from a lane of `source` to a rank on `destination`.
bool send_message(const c10::Device& source, const c10::Device& destination) {
  const auto sending = compute_lane(source);
  const auto receiving = make_lane(destination, LanePriority::kTransfer);
  LocalChannel channel = make_local_channel(destination, 0);
  channel.sender->begin({.epoch = 0, .training = true, .num_messages = 1});
  Message message;
  {
    const auto current = sending->make_current();
    message.tensors.emplace_back();
    message.tensors.push_back(source.is_cpu() ? make_words(kCpu) : launch_expected(source));
    if (source.is_cpu())
      std::memcpy(message.tensors[1].data_ptr(), kExpected.data(), sizeof(kExpected));
    channel.sender->send(0, 0, std::move(message), *sending);
  }
  const auto taken = channel.receiver->take(0, 0, *receiving);
  CHECK(taken.has_value() && !taken->tensors[0].defined());
  const at::Tensor& arrived = taken->tensors[1];
  CHECK(arrived.device() == destination);
  if (destination.is_cpu()) return words_in(arrived) == kExpected;
  Words read;
  const auto current = receiving->make_current();
  launch_to(read.data(), destination.index(), Kernel::kCopy, 0, arrived);
  synchronize(destination);
  return read == kExpected;
}

void test_messages_cross_between_any_devices() {
  for (const auto& [source, destination] : {std::pair{kFirst, kFirst},
                                            {kFirst, kSecond},
                                            {kSecond, kFirst},
                                            {kFirst, kCpu},
                                            {kCpu, kSecond},
                                            {kCpu, kCpu}})
    CHECK(num_right([&] { return send_message(source, destination); }) == kTries);
}

// Nothing but the copy's own lane waits there.
void test_message_to_the_cpu_that_waits_for_nothing_is_a_wrong_result() {
  cuda_fake::Plant plant;
  plant.leaves_out_wait = [](cuda::Stream, cuda::Stream) { return true; };
  cuda_fake::plant(plant);
  CHECK(num_right([&] { return send_message(kFirst, kCpu); }) < kTries);
  CHECK(cuda_fake::num_planted() == kTries);
  cuda_fake::plant({});
}

void test_freed_memory_is_at_once_used_again_on_its_stream() {
  const auto lane = compute_lane(kFirst);
  const auto other = compute_lane(kFirst);
  const auto current = lane->make_current();
  at::Tensor tensor = launch_expected(kFirst);
  const void* const memory = tensor.const_data_ptr();
  cuda_fake::launch(cuda_fake::current_stream(0), [] { usleep(5000); });
  tensor.reset();
  {
    const auto elsewhere = other->make_current();
    CHECK(make_words(kFirst).const_data_ptr() != memory);
  }
  Words before;
  const cuda::Stream stream = cuda_fake::current_stream(0);
  cuda_fake::launch(stream, [&] { std::memcpy(before.data(), memory, sizeof(before)); });
  tensor = make_words(kFirst);
  CHECK(tensor.const_data_ptr() == memory);
  synchronize(kFirst);
  CHECK(before == kExpected);  // poisoned in the stream's order
  Words poison;
  std::memset(poison.data(), cuda_fake::kPoison, sizeof(poison));
  CHECK(words_in(tensor) == poison);
}

void test_adopted_memory_waits_for_the_lane_that_adopted_it() {
  const auto lane = compute_lane(kFirst);
  const auto reader = compute_lane(kFirst);
  std::atomic<bool> is_read = false;
  {
    const auto current = reader->make_current();
    cuda_fake::launch(cuda_fake::current_stream(0), [&] {
      while (!is_read) usleep(100);
    });
  }
  const auto current = lane->make_current();
  at::Tensor tensor = make_words(kFirst);
  const void* const memory = tensor.const_data_ptr();
  lane->adopt(tensor);  // its own: nothing
  reader->adopt(tensor);
  tensor.reset();
  CHECK(make_words(kFirst).const_data_ptr() != memory);
  is_read = true;
  {
    const auto elsewhere = reader->make_current();
    synchronize(kFirst);
  }
  const at::Tensor next = make_words(kFirst);
  const at::Tensor after = make_words(kFirst);
  CHECK(next.const_data_ptr() == memory || after.const_data_ptr() == memory);
}

void test_pinned_memory_waits_for_the_copy_from_it() {
  const auto lane = compute_lane(kFirst);
  const auto current = lane->make_current();
  const auto pinned = at::TensorOptions().dtype(at::kLong).pinned_memory(true);
  at::Tensor host = at::empty({static_cast<std::int64_t>(kNumWords)}, pinned);
  std::memcpy(host.data_ptr(), kExpected.data(), sizeof(kExpected));
  at::Tensor tensor = make_words(kFirst);
  cuda_fake::launch(cuda_fake::current_stream(0), [] { usleep(3000); });
  tensor.copy_(host, /*non_blocking=*/true);
  host.reset();
  host = at::empty({static_cast<std::int64_t>(kNumWords)}, pinned);  // poisoned
  synchronize(kFirst);
  CHECK(words_in(tensor) == kExpected);
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  alarm(110);  // nothing here may hang
  test_mark_orders_lanes();
  test_wait_for_a_mark_never_recorded_is_refused();
  test_callers_lane_is_of_its_device_whatever_device_is_current();
  test_lane_takes_over_the_idle_stream_of_one_that_went();
  test_messages_cross_between_any_devices();
  test_message_to_the_cpu_that_waits_for_nothing_is_a_wrong_result();
  test_freed_memory_is_at_once_used_again_on_its_stream();
  test_adopted_memory_waits_for_the_lane_that_adopted_it();
  test_pinned_memory_waits_for_the_copy_from_it();
}
