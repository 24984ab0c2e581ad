#include "bindings/python_overlap.h"

#include <utility>

#include "base/error.h"

namespace py = pybind11;

namespace pipert {

void PythonHalf::call() {
  {
    const std::lock_guard lock(mutex_);
    if (is_over_) throw ValueError(concat(name(), " is over: overlap_fn has returned"));
    called_again_ |= state_ != State::kNew;
    if (called_again_) throw ValueError(concat(name(), " was called already"));
    state_ = State::kRunning;
  }
  const py::gil_scoped_release no_gil;
  const auto finish = [this] {
    const std::lock_guard lock(mutex_);
    state_ = State::kDone;
    done_.notify_all();
  };
  try {
    half_.run();
  } catch (...) {
    finish();
    throw;
  }
  finish();
}

void PythonHalf::end() {
  std::unique_lock lock(mutex_);
  is_over_ = true;
  done_.wait(lock, [this] { return state_ != State::kRunning; });
  half_.run = nullptr;
  if (state_ == State::kDone && !called_again_) return;
  throw ValueError(concat("overlap_fn must call each half once: ", name(), " was ",
                          called_again_ ? "called twice" : "not called"));
}

std::string PythonHalf::name() const {
  const bool is_forward = half_.action.kind == ActionKind::kForward;
  return concat("the ", is_forward ? "forward" : "backward", " of ", to_string(pair_));
}

PythonOverlap::PythonOverlap(py::object function, std::map<StageIndex, py::object> modules)
    : function_(std::move(function)), modules_(std::move(modules)) {}

PythonOverlap::~PythonOverlap() {
  const py::gil_scoped_acquire gil;
  function_ = {};
  modules_.clear();
}

void PythonOverlap::run(const OverlapHalves& halves) {
  const py::gil_scoped_acquire gil;
  const Action pair = overlap(halves.forward.action, halves.backward.action);
  const auto make = [&](const OverlapHalf& half) {
    return std::make_shared<PythonHalf>(half, pair, modules_.at(half.action.stage));
  };
  const auto forward = make(halves.forward);
  const auto backward = make(halves.backward);
  const auto end = [&] {
    const py::gil_scoped_release no_gil;
    std::exception_ptr mistake;
    for (PythonHalf* half : {forward.get(), backward.get()}) {
      try {
        half->end();
      } catch (...) {
        if (mistake == nullptr) mistake = std::current_exception();
      }
    }
    return mistake;
  };
  try {
    function_(forward, backward);
  } catch (...) {
    end();
    throw;
  }
  if (const auto mistake = end()) std::rethrow_exception(mistake);
}

}  // namespace pipert
