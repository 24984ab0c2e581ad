#include "autograd/backward.h"

#include <torch/csrc/autograd/engine.h>

namespace pipert {

void run_backward(const std::vector<torch::autograd::Edge>& roots,
                  const std::vector<at::Tensor>& gradients, bool keep_graph) {
  if (roots.empty()) return;
  torch::autograd::Engine::get_default_engine().execute(roots, gradients, keep_graph,
                                                        /*create_graph=*/false,
                                                        /*accumulate_grad=*/true,
                                                        /*outputs=*/{});
}

}  // namespace pipert
