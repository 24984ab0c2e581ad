#include "search/rounds.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace pipert {
namespace {

constexpr auto kLook = std::chrono::milliseconds(10);
constexpr std::int64_t kRuleTries = 500;      // of a walk in its second round
constexpr std::int64_t kFirstSlice = 25'000;  // in its first rounds of local search
constexpr std::int64_t kLongestSlice = 800'000;
constexpr int kRoundsApart = 3;  // then the walks behind go on from the best
constexpr double kRounding = 1e-12;

enum class Kind : std::uint8_t { kTryRules, kChangeRules, kChangeOrder };

struct Task {
  Kind kind = Kind::kTryRules;
  Field* field = nullptr;
  std::size_t walk = 0;
  std::int64_t tries = 0;
  std::int64_t done = 0;
};

Kind kind_of(int round) {
  if (round == 0) return Kind::kTryRules;
  return round == 1 ? Kind::kChangeRules : Kind::kChangeOrder;
}

// How many tries each walk of a field gets in a round.
std::int64_t slice_of(int round, const Field& field) {
  switch (kind_of(round)) {
    case Kind::kTryRules:
      return static_cast<std::int64_t>(field.rules.size() / field.walks.size()) + 1;
    case Kind::kChangeRules:
      return kRuleTries;
    case Kind::kChangeOrder:
      return std::min(kLongestSlice, kFirstSlice << std::min((round - 2) / 2, 10));
  }
  return 0;
}

std::int64_t run_task(const Task& task, const std::atomic<bool>& stop) {
  Walk& walk = task.field->walks[task.walk];
  switch (task.kind) {
    case Kind::kTryRules: {
      std::vector<GreedyRules> share;
      for (std::size_t i = task.walk; i < task.field->rules.size(); i += task.field->walks.size()) {
        if (std::cmp_less(share.size(), task.tries)) share.push_back(task.field->rules[i]);
      }
      return walk.try_rules(share, stop);
    }
    case Kind::kChangeRules:
      return walk.change_rules(task.tries, stop);
    case Kind::kChangeOrder:
      return walk.change_order(task.tries, stop);
  }
  return 0;
}

// Runs all tasks on several threads while the calling thread looks after the limits.
class Crew {
 public:
  Crew(std::vector<Task>& tasks, const RoundLimits& limits) : tasks_(tasks), limits_(limits) {}

  // False if a limit was reached.
  bool run() {
    running_ = std::min<std::size_t>(static_cast<std::size_t>(limits_.num_threads), tasks_.size());
    std::vector<std::jthread> workers;  // joined last, when the flag below is set whatever happens
    const Flag all_stop{stop_};
    for (std::size_t i = running_; i > 0; --i) workers.emplace_back([this] { work(); });
    bool in_time = true;
    std::unique_lock lock(mutex_);
    while (!ended_.wait_for(lock, kLook, [this] { return running_ == 0; })) {
      lock.unlock();
      if (limits_.stop && limits_.stop()) in_time = false;
      if (limits_.deadline && std::chrono::steady_clock::now() >= *limits_.deadline)
        in_time = false;
      if (!in_time) stop_ = true;
      lock.lock();
    }
    if (failure_) std::rethrow_exception(failure_);
    return in_time;
  }

 private:
  struct Flag {
    std::atomic<bool>& flag;
    ~Flag() { flag = true; }
  };

  void work() {
    std::exception_ptr failure;
    try {
      for (std::size_t i = next_++; i < tasks_.size(); i = next_++) {
        tasks_[i].done = run_task(tasks_[i], stop_);
        const Field& field = *tasks_[i].field;
        const bool best = field.walks[tasks_[i].walk].is_done();
        if (best && !limits_.tries) stop_ = true;  // see Note [The same answer every time]
      }
    } catch (...) {
      failure = std::current_exception();
      stop_ = true;
    }
    const std::lock_guard lock(mutex_);
    if (failure) failure_ = failure;
    --running_;
    ended_.notify_one();
  }

  std::vector<Task>& tasks_;
  const RoundLimits& limits_;
  std::atomic<bool> stop_ = false;
  std::atomic<std::size_t> next_ = 0;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::size_t running_ = 0;     // workers, under mutex_
  std::exception_ptr failure_;  // under mutex_
};

double best_of(const Field& field) {
  double best = field.walks.front().best_value();
  for (const Walk& walk : field.walks) best = std::min(best, walk.best_value());
  return best;
}

// The half of the walks that is behind goes on from the best order.
void gather(Field& field) {
  std::vector<Walk*> walks;
  for (Walk& walk : field.walks) walks.push_back(&walk);
  std::stable_sort(walks.begin(), walks.end(),
                   [](const Walk* a, const Walk* b) { return a->best_value() < b->best_value(); });
  for (std::size_t i = (walks.size() + 1) / 2; i < walks.size(); ++i) {
    walks[i]->offer(walks.front()->best());
  }
}

class Rounds {
 public:
  Rounds(const std::vector<std::unique_ptr<Field>>& fields, const RoundLimits& limits)
      : fields_(fields), limits_(limits), planned_(fields.size(), 0) {}

  std::int64_t run() {
    std::int64_t tried = 0;
    for (int round = 0;; ++round) {
      std::vector<Task> tasks = plan(round);
      if (tasks.empty()) return tried;
      const bool in_time = Crew(tasks, limits_).run();
      for (const Task& task : tasks) tried += task.done;
      if (!in_time) return tried;
      if (round > 1 && round % kRoundsApart == 0) {
        for (const auto& field : fields_) gather(*field);
      }
    }
  }

 private:
  std::vector<Task> plan(int round) {
    double best = best_of(*fields_.front());
    for (const auto& field : fields_) best = std::min(best, best_of(*field));
    std::vector<Task> tasks;
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      Field& field = *fields_[i];
      if (best <= field.bound * (1.0 + kRounding)) continue;  // nothing better is there
      const auto num_walks = static_cast<std::int64_t>(field.walks.size());
      std::int64_t slice = slice_of(round, field);
      if (limits_.tries) slice = std::min(slice, (*limits_.tries - planned_[i]) / num_walks);
      if (round == 0) slice = std::max<std::int64_t>(slice, 1);
      if (slice <= 0) continue;
      planned_[i] += slice * num_walks;
      for (std::size_t walk = 0; walk < field.walks.size(); ++walk) {
        tasks.push_back({kind_of(round), &field, walk, slice});
      }
    }
    return tasks;
  }

  const std::vector<std::unique_ptr<Field>>& fields_;
  const RoundLimits& limits_;
  std::vector<std::int64_t> planned_;  // tries, by field
};

}  // namespace

std::int64_t run_rounds(const std::vector<std::unique_ptr<Field>>& fields,
                        const RoundLimits& limits) {
  return Rounds(fields, limits).run();
}

}  // namespace pipert
