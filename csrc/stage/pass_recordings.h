// PassRecordings: what a rank has recorded of one kind of pass, and has yet to.
//
// The caller's side of a pass (its arguments, the weights, the modes) tells one kind from another
// before it begins. What other ranks send is seen when it arrives: so each kind has as many
// recordings as there are forms of the first message. Not owned by a thread: the caller's between
// passes, the rank's during one.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "stage/action_recording.h"

namespace pipert {

enum class PassMode : std::uint8_t {
  kEager,   // as it is
  kRecord,  // and each action is recorded before it is run
  kReplay,
};

class PassRecordings {
 public:
  // `num_warmups`: passes that run as they are before one is recorded.
  explicit PassRecordings(int num_warmups) : num_warmups_(num_warmups) {}

  // Copies of the batch's tensors that recordings read; empty as long as none can be made.
  std::vector<at::Tensor> batch;

  // Whether the next pass might be recorded.
  bool is_warm() const;
  // How the pass runs whose first message is this one. `can_record`: whether it reads `batch`.
  PassMode choose(const Message& first, bool can_record);
  // Why choose() said kEager.
  const std::string& reason() const { return reason_; }
  // Of the pass that choose() was asked about; null: none.
  const std::shared_ptr<ActionRecording>& recording() const { return recording_; }
  // After the pass: its recording is kept.
  void keep();
  // Instead: there will be none of such passes, because of `reason`, if it `is_final` or if none
  // could be made for the third time.
  void drop(std::string reason, bool is_final);

  std::size_t num_recordings() const;
  // The one that was used longest ago, unless it is the last pass's. False if there is none.
  bool drop_oldest();

 private:
  struct Variant {
    MessageForm first;
    int num_seen = 0;
    int num_dropped = 0;
    std::string refusal;
    std::shared_ptr<ActionRecording> recording;
  };

  int num_warmups_;
  std::vector<Variant> variants_;  // the last pass's comes last
  std::shared_ptr<ActionRecording> recording_;
  std::string reason_;
};

}  // namespace pipert
