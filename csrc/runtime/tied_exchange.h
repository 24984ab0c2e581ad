// TiedExchange: what processes that use one parameter tell each other after each pass, so that it
// stays one parameter.
//
// Note [One parameter in several processes]
//
// The process whose stage is the first to use it owns it. After a pass that trains, the others send
// it what they have accumulated; it adds that to its own, the last stage's first, and sends the sum
// back: so all end with the same bits, and their optimizers do the same. What was in .grad before
// the pass counts in the owner's alone. The others accumulate from nothing, and what they had is
// put aside until then; a main gradient is zeroed, since it may be a view of somebody's buffer.
//
// A gradient goes in parts of some rows: while the owner adds up one, the next is on its way.
//
// All processes go through the parameters in one order. One that is behind the others at a
// parameter waits for those who have come to it, or will; what is sent waits only for messages
// before the last two to be taken, which belong to parts that the peer is done with, or to earlier
// parameters, which need nothing of this process any more. So none waits for ever.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "runtime/exchange.h"

namespace pipert {

// A parameter of this process that others use too.
struct TiedWeight {
  std::string name;       // in the unpartitioned model
  StageIndex stage = 0;   // that owns it
  bool is_owner = false;  // whether that stage is here
  // Where the others are, the last stage's first; on those, where the owner is.
  std::vector<Rank> peers;
  at::Tensor parameter;  // a leaf of autograd, of the same shape in all of them
  at::Tensor main;       // where its gradients are added up; undefined: in its .grad
};

class TiedExchange final : public Exchange {
 public:
  using Exchange::Exchange;

  // Before the pass: puts the gradients of those that others own aside. `weights` stay as they are
  // until finish(); in the same order in all processes.
  void begin(ExchangeKind kind, std::int64_t epoch, std::vector<TiedWeight> weights);
  bool run(Lane& lane) override;
  void finish() override;
  std::string awaited() const override;
  std::string doing() const override;

 private:
  // One part of a parameter, to all its peers or from them.
  struct Step {
    std::size_t weight = 0;  // in weights_
    std::int64_t begin = 0;  // of its rows
    std::int64_t end = 0;
    bool gives = true;
  };

  void plan(std::size_t weight);
  bool give(const Step& step, Lane& lane);
  bool take(const Step& step, Lane& lane);
  // What is to be the same in all processes: the gradient, or the parameter. May be undefined.
  at::Tensor content(std::size_t weight) const;
  void apply(const Step& step, const at::Tensor& theirs);
  // Where a part of the gradients goes that a peer has, and nobody here.
  at::Tensor make_gradient(std::size_t weight);
  // Moves to the next peer of the step at hand.
  void come_to(Rank peer) { peer_.store(peer, std::memory_order_relaxed); }

  ExchangeKind kind_ = ExchangeKind::kTraining;
  std::vector<TiedWeight> weights_;
  std::vector<Step> steps_;
  std::vector<at::Tensor> put_aside_;  // by weight: gradients before the pass
  std::atomic<std::size_t> at_{0};     // the step at hand
  std::atomic<Rank> peer_{0};          // in it
};

}  // namespace pipert
