#include "runtime/decode.h"

#include <set>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "runtime/stage_order.h"

namespace pipert {
namespace {

class Decoder {
 public:
  // `wired` gets what ops point to.
  Decoder(const Program& program, const RankResources& resources, const LaneTable& lanes,
          std::deque<WiredRun>& wired)
      : program_(program),
        resources_(resources),
        lanes_(lanes),
        orders_(stage_orders(program)),
        wired_(wired) {
    for (const Instruction& instruction : program.instructions) {
      const auto* run = std::get_if<Run>(&instruction.op);
      if (run != nullptr && run->action.kind == ActionKind::kRecompute)
        recomputed_.insert({run->action.stage, run->action.microbatch});
      const auto* move = std::get_if<Move>(&instruction.op);
      if (move == nullptr) continue;
      if (move->action.kind == ActionKind::kOffload)
        offloaded_.insert({move->action.stage, move->action.microbatch});
      if (instruction.mark != kNoMark) move_marks_.insert(instruction.mark);
      move_marks_.insert(instruction.waits.begin(), instruction.waits.end());
    }
  }

  Op operator()(const Recv& recv, Op op) {
    op.code = OpCode::kPost;
    op.receiver = resources_.receivers.at(slot(recv.slot).edge).get();
    op.sequence = recv.sequence;
    op.slot = slot(recv.slot).index;
    arriving_[recv.slot] = {op.receiver,   op.lane, recv.message, slot(recv.slot).edge.source,
                            recv.sequence, op.slot, at_};
    return op;
  }

  Op operator()(const Run& run, Op op) {
    switch (run.action.kind) {
      case ActionKind::kForward:
        op.code = OpCode::kForward;
        op.offloads = offloaded_.contains({run.action.stage, run.action.microbatch});
        op.recomputes = recomputed_.contains({run.action.stage, run.action.microbatch});
        break;
      case ActionKind::kRecompute:
        op.code = OpCode::kRecompute;
        break;
      case ActionKind::kBackward:
        op.code = OpCode::kBackward;
        break;
      case ActionKind::kInputGrad:
        op.code = OpCode::kBackwardInput;
        break;
      case ActionKind::kWeightGrad:
        op.code = OpCode::kBackwardWeight;
        break;
      case ActionKind::kSendForward:
      case ActionKind::kRecvForward:
      case ActionKind::kSendBackward:
      case ActionKind::kRecvBackward:
      case ActionKind::kUnshard:
      case ActionKind::kReshard:
      case ActionKind::kReduceGrad:
      case ActionKind::kOffload:
      case ActionKind::kReload:
      case ActionKind::kUpdate:
      case ActionKind::kOverlap:
        throw ValueError(concat(
            "the stages of this pipeline run F, B, I, W, R, OFFLOAD and RELOAD actions, got ",
            to_string(run.action)));
    }
    op.stage = stage_of(run.action);
    op.microbatch = run.action.microbatch;
    op.turn = turn_of(run.action);
    if (is_wired(run)) {
      op.wired = wire(run);
      return op;
    }
    if (!run.reads.empty()) op.input = input(run.reads.front().slot);
    if (run.writes.empty()) return op;
    op.held = run.writes.front();
    note_held(op.held, result_of(run.action), program_.rank);
    return op;
  }

  Op operator()(const Send& send, Op op) {
    op.code = OpCode::kSend;
    op.sender = resources_.senders.at(slot(send.slot).edge).get();
    op.key = send.message;
    op.sequence = send.sequence;
    op.slot = slot(send.slot).index;
    op.held = send.slot;
    return op;
  }

  Op operator()(const Release& release, Op op) {
    op.code = OpCode::kRelease;
    op.sender = resources_.senders.at(slot(release.slot).edge).get();
    op.key = release.message;
    op.sequence = release.sequence;
    op.slot = slot(release.slot).index;
    return op;
  }

  Op operator()(const Move& move, Op op) {
    op.code = move.action.kind == ActionKind::kOffload ? OpCode::kOffload : OpCode::kReload;
    op.stage = stage_of(move.action);
    op.microbatch = move.action.microbatch;
    return op;
  }

  // One after the other, as they stand in the program.
  Op decode(const Instruction& instruction) {
    ++at_;
    Op op;
    const LaneSpec& lane = program_.lanes[as_index(instruction.lane)];
    op.lane = lanes_.at({lane.kind, lane.edge}).get();
    if (move_marks_.contains(instruction.mark)) op.sets = instruction.mark;
    for (const MarkId mark : instruction.waits) {
      if (move_marks_.contains(mark)) op.awaits = mark;
    }
    return std::visit([&](const auto& typed) { return (*this)(typed, op); }, instruction.op);
  }

 private:
  const Slot& slot(SlotId id) const { return program_.slots[as_index(id)]; }

  Stage* stage_of(const Action& action) const {
    const auto found = resources_.stages.find(action.stage);
    if (found != resources_.stages.end()) return found->second.get();
    throw ValueError(concat("rank ", program_.rank, " has no stage ", action.stage, ", but ",
                            to_string(action), " to run"));
  }

  StageTurn turn_of(const Action& action) const {
    const StageOrder& order = orders_.at(action.stage);
    const auto first_layer = resources_.first_layers.find(action.stage);
    StageTurn turn;
    turn.stage = action.stage;
    turn.first_layer =
        first_layer == resources_.first_layers.end() ? action.stage : first_layer->second;
    turn.is_first = action.microbatch == order.first_forward;
    turn.is_last = action.microbatch == order.last_forward;
    turn.first_comes_first = order.first_comes_first();
    return turn;
  }

  // A rehearsal's stages have no routes, and may exchange more than one message all the same.
  bool is_wired(const Run& run) const {
    if (run.reads.empty() && run.writes.empty()) return false;
    return resources_.values != nullptr || run.reads.size() > 1 || run.writes.size() > 1 ||
           (!run.reads.empty() && run.reads.front().keeps != kNoSlot);
  }

  const WiredRun* wire(const Run& run) {
    const MessageValues* values = resources_.values.get();
    const MessageKey result = result_of(run.action);
    WiredRun wired(result, values);
    for (const Read& read : run.reads) wired.add_read(input(read.slot), read.keeps, values);
    for (const WiredRead& read : wired.reads()) {  // which may be kept where another one stood
      if (read.keeps != kNoSlot) note_held(read.keeps, read.input.key, read.input.source);
    }
    for (const SlotId id : run.writes) {
      wired.add_write(id, slot(id).edge.destination, values);
      note_held(id, result, program_.rank);
    }
    wired.finish();
    return &wired_.emplace_back(std::move(wired));
  }

  static MessageKey result_of(const Action& action) {
    const auto kind =
        action.kind == ActionKind::kForward ? MessageKind::kActivation : MessageKind::kGradient;
    return {kind, action.stage, action.microbatch};
  }

  void note_held(SlotId id, const MessageKey& key, Rank source) {
    Input& local = held_[id];
    local.slot = id;
    local.key = key;
    local.source = source;
  }

  Input input(SlotId id) const {
    if (slot(id).kind == SlotKind::kReceive) return arriving_.at(id);
    const auto found = held_.find(id);
    if (found != held_.end()) return found->second;
    Input unknown;  // a rehearsal's, and wrong
    unknown.slot = id;
    unknown.source = program_.rank;
    return unknown;
  }

  const Program& program_;
  const RankResources& resources_;
  const LaneTable& lanes_;
  std::set<std::pair<StageIndex, Microbatch>> offloaded_;
  std::set<std::pair<StageIndex, Microbatch>> recomputed_;
  std::set<MarkId> move_marks_;  // that a move sets or waits for
  std::map<StageIndex, StageOrder> orders_;
  int at_ = -1;                       // the instruction at hand
  std::map<SlotId, Input> arriving_;  // what the last Recv into each slot brings
  std::map<SlotId, Input> held_;      // what the last Run into each other slot made, or kept
  std::deque<WiredRun>& wired_;
};

}  // namespace

DecodedProgram decode(Program program, const RankResources& resources, const LaneTable& lanes) {
  DecodedProgram decoded;
  decoded.program = std::move(program);
  Decoder decoder(decoded.program, resources, lanes, decoded.wired);
  decoded.ops.reserve(decoded.program.instructions.size());
  for (const Instruction& instruction : decoded.program.instructions) {
    decoded.ops.push_back(decoder.decode(instruction));
    const auto edge = [&](SlotId id) { return decoded.program.slots[as_index(id)].edge; };
    if (const auto* recv = std::get_if<Recv>(&instruction.op))
      ++decoded.num_incoming[edge(recv->slot)];
    if (const auto* send = std::get_if<Send>(&instruction.op))
      ++decoded.num_outgoing[edge(send->slot)];
  }
  for (const std::size_t at : decoded.program.joint_pairs) decoded.ops[at].begins_pair = true;
  return decoded;
}

}  // namespace pipert
