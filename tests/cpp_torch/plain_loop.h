// PlainLoop: what a pipeline of HashStages must come to, computed on the host by a loop over the
// microbatches.
#pragma once

#include <map>
#include <vector>

#include "hash_stage.h"
#include "plan/program.h"

namespace pipert {

class PlainLoop {
 public:
  // `programs`: of all ranks. From them it takes which microbatches each copy of the model has, and
  // the order in which a stage accumulates them; nothing else.
  PlainLoop(const std::vector<Program>& programs, const Placement& placement);

  // Losses by stage and microbatch; those of first copies' last stages, say. Training adds to
  // gradients().
  std::map<std::pair<StageIndex, Microbatch>, Words> run(std::uint64_t pass, bool training);
  // What the caller's optimizer does.
  void update(std::uint64_t pass);
  void zero_gradients();

  std::vector<Words>& weights() { return weights_; }      // by stage
  std::vector<Words>& gradients() { return gradients_; }  // likewise

 private:
  struct Saved {
    Words first;
    Words second;
    Words activation;
    Words gradient;
  };
  const Placement& placement_;
  std::vector<std::vector<Microbatch>> microbatches_;  // by stage: in flight there
  std::vector<std::vector<Microbatch>> accumulated_;   // by stage: in this order
  std::vector<Words> weights_;
  std::vector<Words> gradients_;
};

Words batch_words(Kernel kernel, std::uint64_t pass, Microbatch microbatch);
Words first_weight(StageIndex stage);

}  // namespace pipert
