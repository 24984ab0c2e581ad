// ProgramLayout: the instructions of all ranks on the lanes that hold them back, and who is at the
// other end of each message: what interleavings.h walks over.
//
// The second halves of joint pairs have a lane of their own on each rank, and each Release has one.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "base/index.h"
#include "plan/program.h"

namespace pipert {

class ProgramLayout {
 public:
  struct At {  // an instruction
    Rank rank = 0;
    std::size_t index = 0;
    std::size_t lane = 0;      // among all lanes
    std::size_t position = 0;  // on it
    bool is_second = false;    // half of a joint pair
  };

  explicit ProgramLayout(std::span<const Program> programs) : programs_(programs) {
    for (const Program& program : programs) lay_out(program);
  }

  const Program& program(Rank rank) const { return programs_[as_index(rank)]; }
  const Instruction& instruction(const At& at) const {
    return program(at.rank).instructions[at.index];
  }
  const std::vector<std::vector<At>>& lanes() const { return lanes_; }
  // Of one rank, in order.
  const std::vector<At>& places(Rank rank) const { return places_[as_index(rank)]; }

  // The second half, of the first one of a joint pair.
  const At* second_of(const At& at) const {
    const auto& places = places_[as_index(at.rank)];
    const bool has_one = at.index + 1 < places.size() && places[at.index + 1].is_second;
    return has_one ? &places[at.index + 1] : nullptr;
  }
  const At* setter(Rank rank, MarkId mark) const {
    for (const At& at : places(rank)) {
      if (instruction(at).mark == mark) return &at;
    }
    return nullptr;
  }

  // The Send of a Recv; the Recv of a Send or a Release.
  const At* peer(const At& at) const {
    const auto* recv = std::get_if<Recv>(&instruction(at).op);
    const auto [edge, sequence] = *end_of(at);
    for (const At& other : places(recv ? edge.source : edge.destination)) {
      const auto& op = instruction(other).op;
      const bool is_kind =
          recv ? std::holds_alternative<Send>(op) : std::holds_alternative<Recv>(op);
      if (is_kind && end_of(other) == end_of(at)) return &other;
    }
    return nullptr;
  }
  // The first Run that reads the message of a Recv.
  const At* reader(const At& recv) const {
    const SlotId slot = std::get<Recv>(instruction(recv).op).slot;
    for (const At& at : places(recv.rank)) {
      const auto* run = std::get_if<Run>(&instruction(at).op);
      if (run == nullptr || at.index < recv.index) continue;
      const auto is_slot = [&](const Read& read) { return read.slot == slot; };
      if (std::any_of(run->reads.begin(), run->reads.end(), is_slot)) return &at;
    }
    return nullptr;
  }

 private:
  struct MessageEnd {
    Edge edge;
    int sequence = 0;
    friend bool operator==(const MessageEnd&, const MessageEnd&) = default;
  };

  std::optional<MessageEnd> end_of(const At& at) const {
    const auto end = [&](const auto& op) {
      return MessageEnd{program(at.rank).slots[as_index(op.slot)].edge, op.sequence};
    };
    const auto& op = instruction(at).op;
    if (const auto* send = std::get_if<Send>(&op)) return end(*send);
    if (const auto* recv = std::get_if<Recv>(&op)) return end(*recv);
    if (const auto* release = std::get_if<Release>(&op)) return end(*release);
    return std::nullopt;
  }

  void lay_out(const Program& program) {
    const std::size_t first = lanes_.size();
    const std::size_t second_halves = first + program.lanes.size();
    lanes_.resize(second_halves + 1);
    auto& places = places_.emplace_back();
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
      const Instruction& instruction = program.instructions[i];
      std::size_t lane = first + as_index(instruction.lane);
      const auto& pairs = program.joint_pairs;
      const bool is_second = i > 0 && std::binary_search(pairs.begin(), pairs.end(), i - 1);
      if (is_second) lane = second_halves;
      if (std::holds_alternative<Release>(instruction.op)) {
        lane = lanes_.size();
        lanes_.emplace_back();
      }
      places.push_back({program.rank, i, lane, lanes_[lane].size(), is_second});
      lanes_[lane].push_back(places.back());
    }
  }

  std::span<const Program> programs_;
  std::vector<std::vector<At>> lanes_;   // of all ranks
  std::vector<std::vector<At>> places_;  // by rank and instruction
};

}  // namespace pipert
