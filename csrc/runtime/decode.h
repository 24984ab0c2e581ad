// decode: a Program with its names resolved to the objects that one rank uses, flat and ready to
// run.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "plan/program.h"
#include "runtime/message_values.h"
#include "runtime/overlap.h"
#include "runtime/wired_run.h"
#include "stage/stage.h"
#include "transport/channel.h"

namespace pipert {

// The lanes of one rank, by kind and edge (the compute lane: an edge from the rank to itself).
using LaneTable = std::map<std::pair<LaneKind, Edge>, std::unique_ptr<Lane>>;

// What a rank is made of. Owns all of it.
struct RankResources {
  std::map<StageIndex, std::unique_ptr<Stage>> stages;  // the rank's own
  std::map<Edge, std::unique_ptr<Sender>> senders;      // by outgoing edge
  std::map<Edge, std::unique_ptr<Receiver>> receivers;  // by incoming edge
  std::unique_ptr<Overlap> overlap;  // runs joint pairs; null: the forward first, then the backward
  // Of the stages, through the whole model; without an entry, the stage's own number.
  std::map<StageIndex, std::int64_t> first_layers;
  // What messages carry, where stages have routes; else null. Shared by the ranks of the process.
  std::shared_ptr<const MessageValues> values;
};

enum class OpCode : std::uint8_t {
  kPost,
  kForward,
  kBackward,
  kBackwardInput,
  kBackwardWeight,
  kRecompute,
  kOffload,
  kReload,
  kSend,
  kRelease,
};

struct Op {
  OpCode code = OpCode::kPost;
  Stage* stage = nullptr;        // those that run it
  Receiver* receiver = nullptr;  // kPost
  Sender* sender = nullptr;      // kSend, kRelease
  Lane* lane = nullptr;          // of the instruction
  MessageKey key;                // kSend: the message's name
  Microbatch microbatch = 0;     // likewise
  StageTurn turn;                // likewise
  int sequence = 0;
  int slot = -1;             // transfers: the index among the edge's slots of that side
  bool begins_pair = false;  // it and the next one are a joint pair
  int held = -1;  // of the stage's actions: the SlotId that takes the result, -1 for none; kSend:
                  // the one to send from
  Input input;    // of the stage's actions
  // Instead of `held` and `input`, where a stage exchanges more than one message; else null.
  const WiredRun* wired = nullptr;
  // kForward: whether the activations will go to the host, or be computed again.
  bool offloads = false;
  bool recomputes = false;
  // Marks between the compute lane and those of moves. All others are the channels' business.
  MarkId awaits = kNoMark;
  MarkId sets = kNoMark;
};

struct DecodedProgram {
  Program program;
  std::vector<Op> ops;         // by instruction
  std::deque<WiredRun> wired;  // those that `ops` point to: where they are, they stay
  std::map<Edge, int> num_outgoing;
  std::map<Edge, int> num_incoming;
};

// REQUIRES that `resources` and `lanes` have the channels and lanes that the program names, and
// outlive the result. ValueError for an action that no stage of this build can run, or of a stage
// that is not there.
DecodedProgram decode(Program program, const RankResources& resources, const LaneTable& lanes);

}  // namespace pipert
