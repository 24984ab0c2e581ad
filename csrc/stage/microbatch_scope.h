// MicrobatchScope: what the calling thread is doing: for which microbatch it runs which stage.
//
// Set around each action of a stage, on the rank's thread; read by whatever code runs in there.
#pragma once

#include "random/device_draws.h"
#include "random/stream_key.h"
#include "stage/stage.h"

namespace pipert {

class MicrobatchScope {
 public:
  // What the thread draws in there belongs to the stream of this microbatch, kind and stage.
  // `context` outlives the scope. On an accelerator that several ranks draw from it waits for its
  // turn, and has it as long as it lives. REQUIRES that the GIL is not held.
  MicrobatchScope(const RunContext& context, StreamKind kind);
  ~MicrobatchScope();
  MicrobatchScope(const MicrobatchScope&) = delete;
  MicrobatchScope& operator=(const MicrobatchScope&) = delete;

  // Of the calling thread's innermost scope; null outside of a stage.
  static const RunContext* current();

 private:
  const MicrobatchScope* previous_;
  const RunContext& context_;
  StreamKind kind_;
  DeviceDraws::Turn turn_;
};

// The streams of a pass's forwards.
inline StreamKind forward_stream(const Pass& pass) {
  return pass.training ? StreamKind::kTraining : StreamKind::kEvaluation;
}

}  // namespace pipert
