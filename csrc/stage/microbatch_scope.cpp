#include "stage/microbatch_scope.h"

#include <utility>

#include "random/rank_generator.h"

namespace pipert {
namespace {

thread_local const MicrobatchScope* scope_of_thread = nullptr;

DeviceDraws::Turn take_turn() {
  RankGenerator* const generator = RankGenerator::current();
  return generator == nullptr ? DeviceDraws::Turn() : generator->take_turn();
}

void select_stream(const RunContext& context, StreamKind kind) {
  if (RankGenerator* generator = RankGenerator::current())
    generator->select({kind, context.pass.step, context.turn.first_layer, context.microbatch});
}

}  // namespace

MicrobatchScope::MicrobatchScope(const RunContext& context, StreamKind kind)
    : previous_(std::exchange(scope_of_thread, this)),
      context_(context),
      kind_(kind),
      turn_(take_turn()) {
  select_stream(context_, kind_);
}

MicrobatchScope::~MicrobatchScope() {
  scope_of_thread = previous_;
  // Around a forward that runs again there is a backward, which has drawn nothing yet.
  if (previous_ != nullptr) select_stream(previous_->context_, previous_->kind_);
}

const RunContext* MicrobatchScope::current() {
  return scope_of_thread == nullptr ? nullptr : &scope_of_thread->context_;
}

}  // namespace pipert
