// RecordedGradients: the gradients that an action made while it was recorded, where others only add
// to one that is there.
//
// A graph writes a gradient where the recording has it. In a pass that is replayed the leaf is
// given it at the same turn; and where a microbatch ran as it is meanwhile, what it added isn't
// lost.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <vector>

namespace pipert {

class RecordedGradients {
 public:
  RecordedGradients() = default;
  // `before` and `after`: by leaf; undefined where it has none.
  RecordedGradients(const std::vector<at::Tensor>& before, const std::vector<at::Tensor>& after);

  // Forgets those that aren't among `gradients`, by leaf: others have taken their place.
  void keep_only(const std::vector<at::Tensor>& gradients);

  // Around the launch of the graph that writes them. `leaves`: all of them.
  class Others {
   public:
    // Of microbatches that ran as they are before it: the graph writes as if there were none.
    Others(const RecordedGradients& made, const std::vector<at::Tensor>& leaves);
    // After it: adds them, and gives the leaves the sums.
    void add();

   private:
    const RecordedGradients& made_;
    const std::vector<at::Tensor>& leaves_;
    std::vector<at::Tensor> there_;  // by gradient; undefined where there was none
  };
  // After a backward that ran in the graph's place: the graphs to come add to what it made.
  void take_over(const std::vector<at::Tensor>& leaves) const;

 private:
  struct Made {
    std::size_t leaf = 0;
    at::Tensor gradient;
    bool took_place = false;  // of another one, which it includes
  };
  std::vector<Made> made_;
};

}  // namespace pipert
