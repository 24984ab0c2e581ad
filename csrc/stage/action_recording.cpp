#include "stage/action_recording.h"

#include <ATen/ops/from_blob.h>

namespace pipert {

RecordedAction& ActionRecording::keep(const Name& name, RecordedAction action) {
  return actions_.insert_or_assign(name, std::move(action)).first->second;
}

RecordedAction* ActionRecording::find(const Name& name) {
  const auto found = actions_.find(name);
  return found == actions_.end() ? nullptr : &found->second;
}

void ActionRecording::close(const std::vector<at::Tensor>& gradients) {
  for (auto& [name, action] : actions_) action.gradients.keep_only(gradients);
}

std::vector<at::Tensor> aliases_of(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> aliases;
  for (const at::Tensor& tensor : tensors) {
    aliases.emplace_back();
    if (!tensor.defined()) continue;
    aliases.back() = at::for_blob(tensor.data_ptr(), tensor.sizes())
                         .strides(tensor.strides())
                         .options(tensor.options())
                         .target_device(tensor.device())
                         .make_tensor();
  }
  return aliases;
}

}  // namespace pipert
