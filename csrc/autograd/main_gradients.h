// MainGradients: while one lives, each gradient that backward puts into a parameter's .grad is
// added to a tensor of higher precision and dropped, parameter by parameter as they come.
//
// Made and ended on the caller's thread, before and after a pass; in between the threads of the
// ranks add. No GIL.
//
// torch adds to a .grad under a lock, but calls these hooks without it: of a parameter that several
// threads use one might drop what another is just adding. Such a parameter's gradients add up in
// .grad, and are swept up at the end.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace pipert {

class MainGradients {
 public:
  struct Entry {
    at::Tensor parameter;    // a leaf that requires a gradient
    at::Tensor main;         // of its shape and on its device, of any floating dtype
    bool is_shared = false;  // by threads of several ranks
  };

  // What is in a .grad already is added first. The parameters' own post-accumulate-grad hooks still
  // run, before the gradient is taken from .grad.
  explicit MainGradients(std::vector<Entry> entries);
  // The parameters are as they were; a gradient that came past the hooks stays in .grad.
  ~MainGradients();
  MainGradients(const MainGradients&) = delete;
  MainGradients& operator=(const MainGradients&) = delete;

  // Adds what is shared, and what came past the hooks: Python replaces them when a parameter gets
  // its first hook during the pass.
  void sweep();

 private:
  std::vector<Entry> entries_;
};

// Adds what is in the parameter's .grad to `main`, and drops it.
void add_to_main(const at::Tensor& parameter, const at::Tensor& main);

}  // namespace pipert
