// DrawSource: where a thread's random numbers come from when no generator is named.
//
// Note [Generators of a thread]
//
// torch has one default generator for the CPU, and ranks are threads: their draws would come in
// turns, in an order that nobody knows. So while a DrawGuard lives on a thread, each operator there
// that draws on the CPU without a generator gets that thread's.
//
// It is done with a kernel at the dispatch key BackendSelect, for each operator whose schema has a
// generator: it puts the thread's in where there is none, and goes on. The key is part of every
// call, and stands right above the backends: below autograd, autocast, functorch and Python modes,
// which all see the call as it was made. (Inside a mode torch takes all keys above it away.)
// torch's own kernels at that key, which choose the device of what has no tensor to tell it by, are
// left alone: their operators draw through others.
//
// An accelerator's kernels take the device's default generator, which is set instead
// (RankGenerator).
#pragma once

#include <ATen/core/Generator.h>

namespace pipert {

class DrawSource {
 public:
  virtual ~DrawSource() = default;
  // Of the CPU. Called for each draw, on the thread.
  virtual const at::Generator& generator() = 0;
};

// The calling thread's; null: it draws from the default generator.
DrawSource* current_draw_source();

// While it lives, the calling thread draws from `source`. To be destroyed on the same thread, in
// reverse order.
class DrawGuard {
 public:
  explicit DrawGuard(DrawSource& source);
  ~DrawGuard();
  DrawGuard(const DrawGuard&) = delete;
  DrawGuard& operator=(const DrawGuard&) = delete;

 private:
  DrawSource* previous_;
};

// Makes guards work for all operators that are loaded by now. Any number of calls, from one thread
// at a time. Without it guards do nothing.
void intercept_draws();

}  // namespace pipert
