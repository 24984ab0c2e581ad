#include "plan/lower.h"

#include <algorithm>

#include "analysis/verify.h"
#include "base/error.h"
#include "plan/rank_lowering.h"
#include "plan/send_room.h"

namespace pipert {
namespace {

// Throws ValueError for a bad schedule or bad options; leaves out `send_slots` with which the
// schedule could not end.
LowerOptions checked(const Schedule& schedule, LowerOptions options) {
  if (options.receive_slots < 1) {
    throw ValueError(concat("receive_slots must be at least 1, got ", options.receive_slots));
  }
  if (options.send_slots.has_value() && *options.send_slots < 1) {
    throw ValueError(concat("send_slots must be at least 1, got ", *options.send_slots));
  }
  VerifyOptions verify_options;
  verify_options.forward_only = is_forward_only(schedule);
  verify_options.joint_pairs = options.joint_pairs;
  require_valid(schedule, verify_options);
  verify_options.capacity = options.send_slots;
  // Of an edge that both halves of a pair read, two messages are held at once.
  if (options.joint_pairs) options.receive_slots = std::max(options.receive_slots, 2);
  if (options.send_slots.has_value() && !verify(schedule, verify_options).ok()) {
    options.send_slots = std::nullopt;
  }
  return options;
}

}  // namespace

Lowering::Lowering(const Schedule& schedule, const LowerOptions& options)
    : schedule_(schedule),
      options_(checked(schedule, options)),
      dataflow_(schedule, options.joint_pairs, options.stage_graph),
      clocks_(dataflow_) {
  const bool bounds_skips = options_.send_slots.has_value() && !options_.stage_graph.is_chain();
  if (bounds_skips && !has_send_room(dataflow_, *options_.send_slots))
    options_.send_slots = std::nullopt;
}

Program Lowering::program(Rank rank) const {
  if (rank < 0 || rank >= num_ranks()) {
    throw IndexError(concat("rank must be in [0, ", num_ranks(), "), got ", rank));
  }
  Program program = lower_rank(dataflow_, clocks_, rank, options_);
  program.num_stages = schedule_.num_stages();
  program.num_copies = schedule_.placement.num_copies();
  program.stage_graph = options_.stage_graph;
  program.num_microbatches = schedule_.num_microbatches;
  return program;
}

std::vector<Program> lower(const Schedule& schedule, const LowerOptions& options) {
  const Lowering lowering(schedule, options);
  std::vector<Program> programs;
  programs.reserve(schedule.ranks.size());
  for (Rank rank = 0; rank < lowering.num_ranks(); ++rank) {
    programs.push_back(lowering.program(rank));
  }
  return programs;
}

}  // namespace pipert
