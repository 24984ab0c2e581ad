// ActionRecorder: whether the rank of this process records the pass at hand, replays it, or
// neither.
//
// Shared by the rank's stages and by whoever runs its passes: the caller's thread says begin()
// before a pass and end() after it, the rank's thread all else, during it.
#pragma once

#include <c10/core/Device.h>

#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "autograd/leaves.h"
#include "stage/pass_recordings.h"

namespace pipert {

// Why an action can't be recorded.
struct Obstacle {
  std::string reason;
  bool is_final = true;  // false: it might go well the next time
};

class ActionRecorder {
 public:
  struct Hooks {
    std::function<void()> before_recording;  // on the rank's thread
    // What an exception says against recording; nothing where it shall be thrown on.
    std::function<std::optional<Obstacle>(const std::exception_ptr&)> explain;
  };

  ActionRecorder(const c10::Device& device, std::unique_ptr<GraphPool> pool, Hooks hooks)
      : device_(device), pool_(std::move(pool)), hooks_(std::move(hooks)) {}

  // The pass may be recorded or replayed. `leaves`: whatever backward gives gradients to, and as it
  // was when the recordings were made. `batch`: its tensors, if the stages read
  // `recordings->batch`.
  void begin(std::shared_ptr<PassRecordings> recordings, std::vector<at::Tensor> leaves,
             std::vector<at::Tensor> batch, bool reads_copies);
  // After the pass. Says how it ran, and if it ran as it is, or in part, why.
  struct End {
    PassMode mode = PassMode::kEager;
    std::string reason;
  };
  End end(bool completed);
  // Whether the pass's batch may be needed more than once.
  bool keeps_batch() const { return reads_copies_; }

  const c10::Device& device() const { return device_; }
  PassMode mode() const { return mode_; }
  ActionRecording* recording() { return recording_.get(); }
  const std::string& reason() const { return reason_; }

  // The rank's thread. At its first forward it finds out how the pass runs.
  void enter(const Message& input);
  std::unique_ptr<DeviceGraph> make_graph() { return pool_->make(); }
  // The action at hand can't be recorded: from here on the pass runs as it is, or fails if the
  // action may not be repeated. False if the exception is to be thrown on.
  bool give_up(const std::exception_ptr& error, bool may_repeat);
  // A message differs from the recorded one: from here on forwards run as they are.
  void leave_replay(std::string reason);
  bool follows_recording() const { return reason_.empty(); }

  // Gradients, by leaf.
  std::vector<at::Tensor> gradients() const { return leaves_.gradients(); }
  void set_gradients(const std::vector<at::Tensor>& gradients) { leaves_.set_gradients(gradients); }
  const std::vector<at::Tensor>& leaves() const { return tensors_; }

 private:
  c10::Device device_;
  std::unique_ptr<GraphPool> pool_;
  Hooks hooks_;
  std::vector<at::Tensor> tensors_;
  Leaves leaves_{{}};
  // Of the pass at hand.
  std::shared_ptr<PassRecordings> recordings_;  // null: as it is
  std::shared_ptr<ActionRecording> recording_;
  std::vector<at::Tensor> batch_;
  bool reads_copies_ = false;
  bool has_entered_ = false;
  PassMode mode_ = PassMode::kEager;
  std::string reason_;
  bool is_final_ = true;     // of a pass that succeeded as it is
  bool is_failure_ = false;  // the pass fails because it was recorded
};

}  // namespace pipert
