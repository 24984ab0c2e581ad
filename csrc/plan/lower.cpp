#include "plan/lower.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "analysis/verify.h"
#include "base/error.h"
#include "base/index.h"
#include "plan/dataflow.h"
#include "plan/incoming.h"
#include "plan/slot_pool.h"

namespace pipert {
namespace {

// A result on its way to one reader: in a send slot to another rank, in a local slot on this one.
struct Outgoing {
  Flow flow;
  int sequence = 0;  // on its edge
  SlotId slot = 0;
  MarkId sent = kNoMark;
};

class RankLowering {
 public:
  RankLowering(const Dataflow& dataflow, const Schedule& schedule, Rank rank,
               const LowerOptions& options)
      : dataflow_(dataflow), rank_(rank) {
    program_.rank = rank;
    program_.num_ranks = schedule.num_ranks();
    program_.num_stages = schedule.num_stages();
    program_.num_microbatches = schedule.num_microbatches;
    collect(options);
    send_slots_ = options.send_slots;
    make_lanes();
  }

  Program build() && {
    post_receives();
    const auto runs = dataflow_.runs(rank_);
    for (int position = 0; position < static_cast<int>(runs.size()); ++position) {
      emit_run(position, runs[static_cast<std::size_t>(position)]);
      emit_sends(position);
      post_receives();
      emit_releases(position);
    }
    emit_releases(static_cast<int>(runs.size()));
    count_activations();
    program_.slots = std::move(slots_).slots();
    return std::move(program_);
  }

 private:
  void collect(const LowerOptions& options) {
    std::map<Edge, std::vector<Flow>> incoming;
    for (const Flow& flow : dataflow_.flows()) {
      if (flow.consumer.rank == rank_) reads_[flow.consumer.position].push_back(flow);
      if (flow.producer.rank == rank_) writes_[flow.producer.position].push_back({.flow = flow});
      if (flow.consumer.rank == rank_ && flow.crosses_ranks())
        incoming[flow.edge()].push_back(flow);
    }
    for (auto& [edge, flows] : incoming)
      incoming_.emplace(edge, Incoming(std::move(flows), options.receive_slots));
    std::map<Edge, int> next_sequence;
    for (auto& [position, outgoing] : writes_) {
      for (Outgoing& out : outgoing) {
        if (out.flow.crosses_ranks()) out.sequence = next_sequence[out.flow.edge()]++;
      }
    }
  }

  void make_lanes() {
    program_.lanes.push_back({LaneKind::kCompute, {rank_, rank_}});
    for (const auto& [edge, incoming] : incoming_) add_lane(LaneKind::kReceive, edge);
    for (const auto& [position, outgoing] : writes_) {
      for (const Outgoing& out : outgoing) {
        if (out.flow.crosses_ranks()) add_lane(LaneKind::kSend, out.flow.edge());
      }
    }
  }

  void add_lane(LaneKind kind, const Edge& edge) {
    const auto [entry, is_new] =
        lanes_.try_emplace({kind, edge}, static_cast<LaneId>(program_.lanes.size()));
    if (is_new) program_.lanes.push_back({kind, edge});
  }

  MarkId new_mark() { return program_.num_marks++; }

  void post_receives() {
    for (auto& [edge, incoming] : incoming_) {
      while (incoming.can_post()) {
        const SlotId slot = slots_.take(SlotKind::kReceive, edge);
        Instruction instruction{.op = Recv{},
                                .lane = lanes_.at({LaneKind::kReceive, edge}),
                                .waits = {},
                                .mark = new_mark()};
        const int sequence = incoming.post(slot, instruction.mark);
        instruction.op = Recv{incoming.flow(sequence).message, sequence, slot};
        if (const MarkId emptied = incoming.emptied_by(slot); emptied != kNoMark) {
          instruction.waits.push_back(emptied);
        }
        program_.instructions.push_back(std::move(instruction));
      }
    }
  }

  void emit_run(int position, const Action& action) {
    Run run{.action = action, .reads = {}, .writes = {}};
    Instruction instruction{.op = Run{}, .lane = kComputeLane, .waits = {}, .mark = kNoMark};
    std::vector<std::pair<Incoming*, SlotId>> emptied;
    bool is_awaited = false;
    for (const Flow& flow : reads_[position]) {
      if (!flow.crosses_ranks()) {
        const SlotId slot = held_.at({flow.producer, flow.consumer});
        run.reads.push_back(slot);
        slots_.give_back(slot);
        continue;
      }
      Incoming& incoming = incoming_.at(flow.edge());
      const Incoming::Held held = incoming.take(incoming.sequence_of(flow));
      instruction.waits.push_back(held.arrival);
      run.reads.push_back(held.slot);
      emptied.emplace_back(&incoming, held.slot);
      is_awaited |= incoming.has_more();
    }
    for (Outgoing& out : writes_[position]) {
      const bool crosses = out.flow.crosses_ranks();
      out.slot = slots_.take(crosses ? SlotKind::kSend : SlotKind::kLocal, out.flow.edge());
      run.writes.push_back(out.slot);
      if (const auto early = emptied_early_.extract(out.slot); !early.empty()) {
        Instruction& release = program_.instructions[early.mapped()];
        release.mark = new_mark();
        instruction.waits.push_back(release.mark);
      }
      is_awaited |= crosses;
      if (!crosses) held_[{out.flow.producer, out.flow.consumer}] = out.slot;
    }
    if (is_awaited) instruction.mark = new_mark();
    for (const auto& [incoming, slot] : emptied) {
      incoming->set_emptied(slot, instruction.mark);
      slots_.give_back(slot);
    }
    instruction.op = std::move(run);
    program_.instructions.push_back(std::move(instruction));
  }

  void emit_sends(int position) {
    const MarkId ready = program_.instructions.back().mark;
    for (Outgoing& out : writes_[position]) {
      if (!out.flow.crosses_ranks()) continue;
      make_room(out.flow.edge());
      out.sent = new_mark();
      program_.instructions.push_back({.op = Send{out.flow.message, out.sequence, out.slot},
                                       .lane = lanes_.at({LaneKind::kSend, out.flow.edge()}),
                                       .waits = {ready},
                                       .mark = out.sent});
      releases_[dataflow_.known_received(out.flow)].push_back(out);
      on_their_way_[out.flow.edge()].emplace(out.flow.consumer.position, out);
    }
  }

  // Waits for the message that is read next, not for the one that was sent first: verify() has
  // shown that the reader comes to it.
  void make_room(const Edge& edge) {
    const auto& on_their_way = on_their_way_[edge];
    if (send_slots_.has_value() && on_their_way.size() >= as_index(*send_slots_)) {
      const Outgoing next = on_their_way.begin()->second;
      emit_release(next);
      emptied_early_[next.slot] = program_.instructions.size() - 1;
    }
  }

  void emit_releases(int position) {
    for (const Outgoing& out : releases_[position]) {
      const auto& on_their_way = on_their_way_[out.flow.edge()];
      if (on_their_way.contains(out.flow.consumer.position)) emit_release(out);
    }
  }

  void emit_release(const Outgoing& out) {
    program_.instructions.push_back({.op = Release{out.flow.message, out.sequence, out.slot},
                                     .lane = lanes_.at({LaneKind::kSend, out.flow.edge()}),
                                     .waits = {out.sent},
                                     .mark = kNoMark});
    slots_.give_back(out.slot);
    on_their_way_[out.flow.edge()].erase(out.flow.consumer.position);
  }

  // An activation lives from its F to its B, or to its W where the backward is split.
  void count_activations() {
    std::set<std::pair<StageIndex, Microbatch>> split;
    for (const Action& action : dataflow_.runs(rank_)) {
      if (action.kind == ActionKind::kWeightGrad) split.emplace(action.stage, action.microbatch);
    }
    int live = 0;
    for (const Action& action : dataflow_.runs(rank_)) {
      if (action.kind == ActionKind::kForward) {
        program_.peak_activations = std::max(program_.peak_activations, ++live);
        continue;
      }
      const bool is_split = split.contains({action.stage, action.microbatch});
      if (!is_split || action.kind == ActionKind::kWeightGrad) --live;
    }
  }

  const Dataflow& dataflow_;
  Rank rank_;
  Program program_;
  SlotPool slots_;
  std::map<Edge, Incoming> incoming_;
  std::map<int, std::vector<Flow>> reads_;       // by the reading Run's position
  std::map<int, std::vector<Outgoing>> writes_;  // by the writing Run's position
  std::map<std::pair<LaneKind, Edge>, LaneId> lanes_;
  std::map<std::pair<RunId, RunId>, SlotId> held_;  // results handed on inside the rank
  std::map<int, std::vector<Outgoing>>
      releases_;  // by the Run after which the peer is known to have it
  // Sent, not released; by the Run that reads it.
  std::map<Edge, std::map<int, Outgoing>> on_their_way_;
  std::map<SlotId, std::size_t> emptied_early_;  // by a Release that had to wait: its index
  std::optional<int> send_slots_;
};

}  // namespace

std::vector<Program> lower(const Schedule& schedule, const LowerOptions& options) {
  if (options.receive_slots < 1) {
    throw ValueError(concat("receive_slots must be at least 1, got ", options.receive_slots));
  }
  if (options.send_slots.has_value() && *options.send_slots < 1) {
    throw ValueError(concat("send_slots must be at least 1, got ", *options.send_slots));
  }
  VerifyOptions verify_options;
  verify_options.forward_only = is_forward_only(schedule);
  require_valid(schedule, verify_options);
  LowerOptions possible = options;
  verify_options.capacity = options.send_slots;
  if (options.send_slots.has_value() && !verify(schedule, verify_options).ok()) {
    possible.send_slots = std::nullopt;
  }

  const Dataflow dataflow(schedule);
  std::vector<Program> programs;
  programs.reserve(schedule.ranks.size());
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    programs.push_back(RankLowering(dataflow, schedule, rank, possible).build());
  }
  return programs;
}

}  // namespace pipert
