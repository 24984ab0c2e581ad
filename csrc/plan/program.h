// Program: what one rank does in one step, as data. Made by lower(), read by the Executor, printed
// for people.
//
// Instructions stand in the order in which the rank issues them. Each belongs to a lane; a lane
// runs its own in order. An instruction waits for the marks that it names and sets its own mark, if
// it has one, when it is done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "ir/action.h"
#include "ir/stage_graph.h"
#include "plan/few.h"

namespace pipert {

using LaneId = std::int32_t;
using MarkId = std::int32_t;
using SlotId = std::int32_t;

inline constexpr MarkId kNoMark = -1;
inline constexpr SlotId kNoSlot = -1;

enum class SlotKind : std::uint8_t {
  kReceive,  // filled by a channel, emptied by the Run that reads it
  kSend,     // filled by a Run, emptied once the peer has the message
  kLocal,    // filled by a Run, emptied by a later Run of the same rank: costs no message
};

struct Slot {
  SlotKind kind = SlotKind::kLocal;
  Edge edge;      // kLocal: source == destination
  int index = 0;  // among the slots of the same edge and kind
};

// kOffload, kReload: to the host and back. Each direction has a lane of its own, so that what comes
// back doesn't wait behind what leaves.
enum class LaneKind : std::uint8_t { kCompute, kSend, kReceive, kOffload, kReload };

struct LaneSpec {
  LaneKind kind = LaneKind::kCompute;
  Edge edge;  // kSend, kReceive; else from the rank to itself
};

// Posts the receive of `message` into `slot`. Done when the message has arrived.
struct Recv {
  MessageKey message;
  int sequence = 0;  // position among the messages of this edge in this step, in the sender's order
  SlotId slot = 0;
};

// A slot that a Run takes a message out of; and the local slot into which it puts that message
// again, for a later stage of its rank that reads it too.
struct Read {
  SlotId slot = kNoSlot;
  SlotId keeps = kNoSlot;
  friend bool operator==(const Read&, const Read&) = default;
};

// Runs a compute action (F, B, I, W, R) on the messages that its `reads` hold: takes out all of
// them, then keeps what is to be kept, then puts its result into each of `writes`. The neighbour's
// message comes first among the reads, that of the stage farthest away last.
struct Run {
  Action action;
  Few<Read, 1> reads;
  Few<SlotId, 2> writes;
};

// Moves the activations of a microbatch on a stage to the host (OFFLOAD) or back (RELOAD).
struct Move {
  Action action;
};

// Sends what `slot` holds. Done when the peer has it.
struct Send {
  MessageKey message;
  int sequence = 0;
  SlotId slot = 0;
};

// Frees a send slot: from here on the peer is known to have its message.
struct Release {
  MessageKey message;
  int sequence = 0;
  SlotId slot = 0;
};

struct Instruction {
  std::variant<Recv, Run, Send, Release, Move> op;
  LaneId lane = 0;
  // In a chain a Run waits for an arrival, a Release and a Move at most.
  Few<MarkId, 3> waits;
  MarkId mark = kNoMark;  // set when this instruction is done; kNoMark when nobody waits for it
};

inline constexpr LaneId kComputeLane = 0;

struct Program {
  Rank rank = 0;
  int num_ranks = 0;
  int num_stages = 0;
  int num_copies = 1;  // of the model; `num_stages` counts those of all
  int num_microbatches = 0;
  int num_marks = 0;
  StageGraph stage_graph;       // what stages read beyond the chain, in each copy
  std::vector<LaneSpec> lanes;  // lanes[kComputeLane] is the compute lane
  std::vector<Slot> slots;
  std::vector<Instruction> instructions;
  // Ascending: the instructions that are a Run whose next one, a Run too, goes along with it: the
  // halves of an overlapped pair, to be run jointly once both have what they read.
  std::vector<std::size_t> joint_pairs;
  // Most (stage, microbatch) pairs whose activations are there at any time (activations.h).
  int peak_activations = 0;
};

// One line: "%12 = run 1F3 reads s0 writes s4 waits m7"
std::string to_string(const Program& program, const Instruction& instruction);
// What the instruction waits for, in words: "to run 1F3, for the activation of stage 0, microbatch
// 3, from rank 0".
std::string describe_wait(const Program& program, std::size_t instruction);
// What it does, as the end of "while it ..."; the wait, for one that waits.
std::string describe_transfer(const Program& program, std::size_t instruction);
// A header, what there is beyond the chain, the slots and one line for each instruction.
std::string to_string(const Program& program);

}  // namespace pipert
