#include "stage/action_recorder.h"

#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <utility>

namespace pipert {

void ActionRecorder::begin(std::shared_ptr<PassRecordings> recordings,
                           std::vector<at::Tensor> leaves, std::vector<at::Tensor> batch,
                           bool reads_copies) {
  recordings_ = std::move(recordings);
  tensors_ = std::move(leaves);
  leaves_ = Leaves(tensors_);
  batch_ = std::move(batch);
  reads_copies_ = reads_copies;
  recording_ = nullptr;
  has_entered_ = false;
  mode_ = PassMode::kEager;
  reason_.clear();
  is_final_ = true;
  is_failure_ = false;
}

void ActionRecorder::enter(const Message& input) {
  if (has_entered_ || recordings_ == nullptr) return;
  has_entered_ = true;
  if (reads_copies_) {  // on the lane: behind whatever read them last
    const c10::AutoGradMode no_grad(false);
    for (std::size_t i = 0; i < batch_.size(); ++i)
      recordings_->batch[i].copy_(batch_[i], /*non_blocking=*/true);
  }
  mode_ = recordings_->choose(input, reads_copies_);
  if (mode_ == PassMode::kEager) {
    reason_ = recordings_->reason();
    return;
  }
  recording_ = recordings_->recording();
  if (mode_ == PassMode::kRecord && hooks_.before_recording) hooks_.before_recording();
}

ActionRecorder::End ActionRecorder::end(bool completed) {
  End end{mode_, std::move(reason_)};
  const bool was_recording = has_entered_ && recording_ != nullptr && mode_ != PassMode::kReplay;
  if (was_recording && completed && end.reason.empty()) {
    recording_->close(gradients());
    recordings_->keep();
  } else if (was_recording) {  // what failed as it is says nothing against recording
    recordings_->drop(end.reason, !end.reason.empty() && (is_failure_ || (completed && is_final_)));
  }
  recordings_ = nullptr;
  recording_ = nullptr;
  batch_.clear();
  reads_copies_ = has_entered_ = false;
  mode_ = PassMode::kEager;
  reason_.clear();
  return end;
}

bool ActionRecorder::give_up(const std::exception_ptr& error, bool may_repeat) {
  std::optional<Obstacle> obstacle = hooks_.explain(error);
  if (!obstacle.has_value()) return false;
  mode_ = PassMode::kEager;
  reason_ = "it can't be recorded: " + std::move(obstacle->reason);
  is_final_ = obstacle->is_final;
  is_failure_ = !may_repeat;
  return true;
}

void ActionRecorder::leave_replay(std::string reason) {
  if (reason_.empty()) reason_ = std::move(reason);
}

}  // namespace pipert
