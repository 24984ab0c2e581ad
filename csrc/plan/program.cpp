#include "plan/program.h"

#include <sstream>
#include <string_view>

#include "base/error.h"
#include "base/index.h"
#include "ir/stage_links.h"

namespace pipert {
namespace {

template <typename... Visitors>
struct Overloaded : Visitors... {
  using Visitors::operator()...;
};
template <typename... Visitors>
Overloaded(Visitors...) -> Overloaded<Visitors...>;

std::string_view slot_kind_name(SlotKind kind) {
  switch (kind) {
    case SlotKind::kReceive:
      return "receive";
    case SlotKind::kSend:
      return "send";
    case SlotKind::kLocal:
      return "local";
  }
  return "?";
}

std::string lane_name(const LaneSpec& lane) {
  switch (lane.kind) {
    case LaneKind::kCompute:
      return "compute";
    case LaneKind::kSend:
      return "send " + to_string(lane.edge);
    case LaneKind::kReceive:
      return "receive " + to_string(lane.edge);
    case LaneKind::kOffload:
      return "offload";
    case LaneKind::kReload:
      return "reload";
  }
  return "?";
}

void print_reads(std::ostream& out, const Few<Read, 1>& reads) {
  if (!reads.empty()) out << " reads";
  for (const Read& read : reads) {
    out << " s" << read.slot;
    if (read.keeps != kNoSlot) out << " keeping s" << read.keeps;
  }
}

void print_writes(std::ostream& out, const Few<SlotId, 2>& writes) {
  if (!writes.empty()) out << " writes";
  for (const SlotId slot : writes) out << " s" << slot;
}

// Who reads the message, as far as the program tells: of several stages, which are on that rank
// is the placement's business.
std::string destination_of(const Program& program, const MessageKey& message, Rank rank) {
  const StageLinks links(program.stage_graph, program.num_stages, program.num_copies);
  const auto readers = links.readers(message.kind, message.stage);
  if (readers.size() != 1) return concat("rank ", rank);
  return concat("stage ", readers.front(), " on rank ", rank);
}

template <typename Transfer>
void print_transfer(std::ostream& out, std::string_view verb, const Transfer& transfer) {
  out << verb << ' ' << to_string(transfer.message) << " #" << transfer.sequence << " s"
      << transfer.slot;
}

}  // namespace

std::string to_string(const Program& program, const Instruction& instruction) {
  std::ostringstream out;
  std::visit(Overloaded{
                 [&](const Recv& op) { print_transfer(out, "recv", op); },
                 [&](const Run& op) {
                   out << "run " << to_string(op.action);
                   print_reads(out, op.reads);
                   print_writes(out, op.writes);
                 },
                 [&](const Send& op) { print_transfer(out, "send", op); },
                 [&](const Release& op) { print_transfer(out, "release", op); },
                 [&](const Move& op) { out << "move " << to_string(op.action); },
             },
             instruction.op);
  const LaneSpec& lane = program.lanes[as_index(instruction.lane)];
  out << "  on " << lane_name(lane);
  if (!instruction.waits.empty()) {
    out << "  waits";
    for (MarkId mark : instruction.waits) out << " m" << mark;
  }
  if (instruction.mark != kNoMark) out << "  sets m" << instruction.mark;
  return out.str();
}

std::string describe_wait(const Program& program, std::size_t instruction) {
  const auto& op = program.instructions[instruction].op;
  const auto slot = [&](SlotId id) { return program.slots[as_index(id)]; };
  if (const auto* release = std::get_if<Release>(&op)) {
    return concat("until rank ", slot(release->slot).edge.destination, " has the ",
                  to_string(release->message));
  }
  const auto* run = std::get_if<Run>(&op);
  if (run == nullptr) return to_string(program, program.instructions[instruction]);
  std::string text = concat("to run ", to_string(run->action));
  for (const auto& [read, keeps] : run->reads) {
    if (slot(read).kind != SlotKind::kReceive) continue;
    for (std::size_t i = instruction; i-- > 0;) {
      const auto* recv = std::get_if<Recv>(&program.instructions[i].op);
      if (recv == nullptr || recv->slot != read) continue;
      text +=
          concat(", for the ", to_string(recv->message), ", from rank ", slot(read).edge.source);
      break;
    }
  }
  return text;
}

std::string describe_transfer(const Program& program, std::size_t instruction) {
  const auto& op = program.instructions[instruction].op;
  const auto edge = [&](SlotId id) { return program.slots[as_index(id)].edge; };
  if (const auto* send = std::get_if<Send>(&op)) {
    return concat("sent the ", to_string(send->message), ", to ",
                  destination_of(program, send->message, edge(send->slot).destination));
  }
  if (const auto* recv = std::get_if<Recv>(&op)) {
    return concat("posted the receive of the ", to_string(recv->message), ", from rank ",
                  edge(recv->slot).source);
  }
  return concat("waited ", describe_wait(program, instruction));
}

std::string to_string(const Program& program) {
  std::ostringstream out;
  out << "program of rank " << program.rank << " of " << program.num_ranks << ": "
      << program.instructions.size() << " instructions, " << program.lanes.size() << " lanes, "
      << program.slots.size() << " slots, " << program.num_marks << " marks, at most "
      << program.peak_activations << " live activations\n";
  if (!program.stage_graph.is_chain())
    out << "  beyond the chain: " << to_string(program.stage_graph) << '\n';
  for (std::size_t i = 0; i < program.slots.size(); ++i) {
    const Slot& slot = program.slots[i];
    out << "  s" << i << ": " << slot_kind_name(slot.kind);
    if (slot.kind != SlotKind::kLocal) out << ' ' << to_string(slot.edge);
    out << " [" << slot.index << "]\n";
  }
  auto pair = program.joint_pairs.begin();
  for (std::size_t i = 0; i < program.instructions.size(); ++i) {
    out << "  %" << i << " = " << to_string(program, program.instructions[i]);
    if (pair != program.joint_pairs.end() && *pair == i) {
      out << "  jointly with %" << i + 1;
      ++pair;
    }
    out << '\n';
  }
  return out.str();
}

}  // namespace pipert
