#include "runtime/stage_order.h"

namespace pipert {
namespace {

void set_first(Microbatch& first, Microbatch microbatch) {
  if (first == StageOrder::kNone) first = microbatch;
}

void note(std::map<StageIndex, StageOrder>& orders, const Action& action) {
  switch (action.kind) {
    case ActionKind::kForward: {
      StageOrder& order = orders[action.stage];
      set_first(order.first_forward, action.microbatch);
      order.last_forward = action.microbatch;
      return;
    }
    case ActionKind::kBackward:
      set_first(orders[action.stage].first_input, action.microbatch);
      set_first(orders[action.stage].first_weight, action.microbatch);
      return;
    case ActionKind::kInputGrad:
      set_first(orders[action.stage].first_input, action.microbatch);
      return;
    case ActionKind::kWeightGrad:
      set_first(orders[action.stage].first_weight, action.microbatch);
      return;
    case ActionKind::kOverlap:
      note(orders, overlapped_forward(action));
      note(orders, overlapped_backward(action));
      return;
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kRecompute:
    case ActionKind::kOffload:
    case ActionKind::kReload:
    case ActionKind::kUpdate:
      return;
  }
}

}  // namespace

std::map<StageIndex, StageOrder> stage_orders(const Program& program) {
  std::map<StageIndex, StageOrder> orders;
  for (const Instruction& instruction : program.instructions) {
    if (const auto* run = std::get_if<Run>(&instruction.op)) note(orders, run->action);
  }
  return orders;
}

}  // namespace pipert
