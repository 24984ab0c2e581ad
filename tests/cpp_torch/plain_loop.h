// PlainLoop: what a pipeline of HashStages must come to, computed on the host by a loop over the
// microbatches.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "hash_stage.h"
#include "plan/program.h"

namespace pipert {

class PlainLoop {
 public:
  // `programs`: of all ranks. From them it takes which microbatches each copy of the model has, and
  // the order in which a stage accumulates them; nothing else.
  PlainLoop(const std::vector<Program>& programs, const Placement& placement);

  // Losses by last stage and microbatch. Training adds to gradients().
  std::map<std::pair<StageIndex, Microbatch>, Words> run(std::uint64_t pass, bool training);
  // What the caller's optimizer does.
  void update(std::uint64_t pass);
  void zero_gradients();

  const std::vector<Words>& gradients() const { return gradients_; }  // by stage

 private:
  struct Saved {
    Words first;
    Words second;
    Words activation;
    Words gradient;
  };
  // Through the stages of one copy of the model, from `first` to `last`. Returns the loss.
  Words forward(std::uint64_t pass, Microbatch microbatch, StageIndex first, StageIndex last);
  void backward(std::uint64_t pass, Microbatch microbatch, StageIndex first, StageIndex last);

  const Placement& placement_;
  std::map<std::pair<StageIndex, Microbatch>, Saved> saved_;
  std::vector<std::vector<Microbatch>> microbatches_;  // by stage: those that it runs
  std::vector<std::vector<Microbatch>> accumulated_;   // by stage: in this order
  std::vector<Words> weights_;
  std::vector<Words> gradients_;
};

Words batch_words(Kernel kernel, std::uint64_t pass, Microbatch microbatch);
Words first_weight(StageIndex stage);

}  // namespace pipert
