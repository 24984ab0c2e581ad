#include "runtime/joint_pair.h"

#include <ATen/Parallel.h>

#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "random/rank_generator.h"
#include "runtime/autocast_cache.h"
#include "runtime/intra_op.h"
#include "runtime/thread_state.h"

namespace pipert {
namespace {

// While it lives, another thread is in the rank's state.
class ElsewhereGuard {
 public:
  // `generator`: the rank's, null if it has none of its own.
  ElsewhereGuard(const ThreadState& state, Lane& lane, int num_threads,
                 const RankGenerator* generator)
      : guard_(state), current_(lane.make_current()), previous_(at::get_num_threads()) {
    set_thread_intra_op_threads(num_threads);
    if (generator != nullptr) generator_ = generator->make_for_this_thread();
  }
  ~ElsewhereGuard() { set_thread_intra_op_threads(previous_); }
  ElsewhereGuard(const ElsewhereGuard&) = delete;
  ElsewhereGuard& operator=(const ElsewhereGuard&) = delete;

 private:
  ThreadStateGuard guard_;
  AutocastCache cache_;
  std::unique_ptr<RankGenerator> generator_;
  std::unique_ptr<CurrentLane> current_;
  int previous_;
};

class JointPair {
 public:
  JointPair(const OverlapHalves& halves, bool one_by_one, Lane& lane, const c10::Device& device)
      : halves_(halves),
        one_by_one_(one_by_one),
        lane_(lane),
        state_(device),
        num_threads_(at::get_num_threads()) {}

  OverlapHalves halves() { return {guarded(halves_.forward), guarded(halves_.backward)}; }
  const std::exception_ptr& cause() const { return cause_; }
  const Action& failing() const { return failing_; }

 private:
  OverlapHalf guarded(const OverlapHalf& half) {
    return {half.action, [this, &half] { run(half); }};
  }

  void run(const OverlapHalf& half) {
    std::unique_lock alone(stage_, std::defer_lock);
    if (one_by_one_) alone.lock();
    std::unique_ptr<ElsewhereGuard> elsewhere;
    if (std::this_thread::get_id() != rank_thread_) {
      elsewhere = std::make_unique<ElsewhereGuard>(state_, lane_, num_threads_, generator_);
    }
    try {
      half.run();
    } catch (...) {
      const std::lock_guard lock(failure_);
      if (cause_ == nullptr) {
        cause_ = std::current_exception();
        failing_ = half.action;
      }
      throw;
    }
  }

  const OverlapHalves& halves_;
  bool one_by_one_;
  Lane& lane_;
  std::thread::id rank_thread_ = std::this_thread::get_id();
  const RankGenerator* generator_ = RankGenerator::current();
  ThreadState state_;
  int num_threads_;
  std::mutex stage_;
  std::mutex failure_;
  std::exception_ptr cause_;
  Action failing_;
};

}  // namespace

void run_jointly(Overlap* overlap, const OverlapHalves& halves, bool one_by_one, Lane& lane,
                 const c10::Device& device, std::optional<Action>& failing) {
  if (overlap == nullptr) {
    for (const OverlapHalf* half : {&halves.forward, &halves.backward}) {
      failing = half->action;
      half->run();
    }
    failing.reset();
    return;
  }
  failing = pipert::overlap(halves.forward.action, halves.backward.action);
  JointPair pair(halves, one_by_one, lane, device);
  try {
    overlap->run(pair.halves());
  } catch (...) {
    if (pair.cause() == nullptr) throw;
  }
  if (pair.cause() != nullptr) {
    failing = pair.failing();
    std::rethrow_exception(pair.cause());
  }
  failing.reset();
}

}  // namespace pipert
