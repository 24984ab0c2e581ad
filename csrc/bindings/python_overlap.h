// PythonOverlap: a Python function that runs the halves of a joint pair.
#pragma once

#include <pybind11/pybind11.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>

#include "base/ids.h"
#include "runtime/overlap.h"

namespace pipert {

// What the function gets for a half: it calls it once, from any thread. Shared by Python, which may
// keep it, and the pair, which ends its use.
class PythonHalf {
 public:
  PythonHalf(OverlapHalf half, const Action& pair, pybind11::object module)
      : half_(std::move(half)), pair_(pair), module_(std::move(module)) {}

  const Action& action() const { return half_.action; }
  const pybind11::object& module() const { return module_; }

  // REQUIRES the GIL, which it lets go while it runs. ValueError for a second time, and after the
  // pair's end.
  void call();
  // Waits for one that runs on another thread; calls fail from then on. Without the GIL. Throws
  // ValueError unless the half was called once.
  void end();

 private:
  enum class State : std::uint8_t { kNew, kRunning, kDone };
  std::string name() const;  // "the forward of (0F7;7B3)OVERLAP_F_B"

  OverlapHalf half_;
  Action pair_;
  pybind11::object module_;
  std::mutex mutex_;
  std::condition_variable done_;
  State state_ = State::kNew;
  bool called_again_ = false;
  bool is_over_ = false;
};

class PythonOverlap final : public Overlap {
 public:
  // `modules`: by stage of the rank.
  PythonOverlap(pybind11::object function, std::map<StageIndex, pybind11::object> modules);
  ~PythonOverlap() override;  // takes the GIL

  void run(const OverlapHalves& halves) override;

 private:
  pybind11::object function_;
  std::map<StageIndex, pybind11::object> modules_;
};

}  // namespace pipert
