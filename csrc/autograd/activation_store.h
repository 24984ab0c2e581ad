// ActivationStore: what autograd saved in the forward of one microbatch on one stage, in a form
// that can spend time on the host.
//
// The forward runs with hooks that give each tensor that is saved to pack(), and call the handle's
// unpack() when backward needs it. Tensors that share memory go together, so they share it again
// when they are back. Only memory that nobody else holds is moved: weights, pieces of the batch and
// what a neighbour has too stay, since nothing would be freed.
//
// Owned by the stage, handles by the graph, which frees them as its backward goes on. Used by the
// stage's thread, and by autograd's threads while that one waits for them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "device/lane.h"

namespace pipert {

class SavedTensor;

class ActivationStore {
 public:
  // `owner`: "stage 1, microbatch 3", for errors.
  explicit ActivationStore(std::string owner);

  std::shared_ptr<SavedTensor> pack(const at::Tensor& tensor);

  // To the host, and back. REQUIRES that `lane` is current, and that marks order it with `compute`,
  // the one that uses the tensors.
  void offload(Lane& lane);
  void reload(Lane& lane, Lane& compute);

  // A piece of memory behind any number of saved tensors.
  struct Memory {
    c10::Storage storage;  // null while it is on the host
    c10::Device device{c10::kCPU};
    at::Tensor host;  // its bytes, while it is there
  };

 private:
  std::shared_ptr<const std::string> owner_;
  std::unordered_map<const c10::StorageImpl*, std::weak_ptr<Memory>> packed_;  // until offload()
  std::vector<std::weak_ptr<Memory>> on_host_;
};

// One tensor that was saved. Immutable but for where its memory is.
class SavedTensor {
 public:
  // `memory`: null for a tensor that is kept as it is.
  SavedTensor(const at::Tensor& tensor, std::shared_ptr<const std::string> owner,
              std::shared_ptr<ActivationStore::Memory> memory);

  // The tensor again, any number of times. c10::Error if somebody has changed it in place since it
  // was saved, as torch has it, or if it is on the host.
  at::Tensor unpack() const;

 private:
  void check_version() const;

  std::shared_ptr<const std::string> owner_;
  at::Tensor kept_;  // if there is no memory
  std::shared_ptr<ActivationStore::Memory> memory_;
  // How the tensor lies in its memory.
  c10::DispatchKeySet keys_;
  caffe2::TypeMeta dtype_;
  std::vector<std::int64_t> sizes_;
  std::vector<std::int64_t> strides_;
  std::int64_t offset_ = 0;
  // Hooks lose torch's own check: the counter is shared with all that share the tensor's memory.
  c10::VariableVersion counter_;
  std::uint32_t version_ = 0;
};

}  // namespace pipert
