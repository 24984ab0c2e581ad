// MessageForm: all of a message but the numbers in its tensors: what a recording was made for.
//
// A plain value.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device/message.h"

namespace pipert {

class MessageForm {
 public:
  MessageForm() = default;  // of a message without tensors
  explicit MessageForm(const Message& message);

  bool matches(const Message& message) const;
  // Why no tensors of a recording's own can stand for the message's, on `device`; empty: they can.
  std::string obstacle(const c10::Device& device) const;
  // New ones with the same sizes and strides; undefined where the message's are. REQUIRES that
  // nothing stands against it.
  std::vector<at::Tensor> make_tensors() const;

 private:
  struct TensorForm {
    bool is_defined = false;
    bool is_plain = true;  // dense in memory, and what its memory says
    std::vector<std::int64_t> sizes;
    std::vector<std::int64_t> strides;
    c10::ScalarType dtype = c10::ScalarType::Undefined;
    c10::Device device{c10::kCPU};
  };

  static TensorForm form_of(const at::Tensor& tensor);
  static bool matches(const TensorForm& form, const at::Tensor& tensor);

  std::vector<TensorForm> tensors_;
  std::vector<bool> requires_grad_;
  std::shared_ptr<const Structure> structure_;
  double weight_ = 0.0;
  std::int64_t batch_size_ = 0;
};

}  // namespace pipert
