// Finding: the first flaw that a part of the prover came upon, and the words for it.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plan/proof.h"

namespace pipert {

struct Finding {
  Flaw flaw = Flaw::kNone;
  std::string message;
  std::vector<InstructionPlace> places;
};

// Nothing: all is well.
using MaybeFinding = std::optional<Finding>;

InstructionPlace place_of(const Program& program, std::size_t instruction);
// "%3 (send activation of stage 0, microbatch 0 #0 s2)"
std::string name_of(const Program& program, std::size_t instruction);

// A finding on one rank: "rank 0: ", then `text`. `instructions`: its places.
Finding find(Flaw flaw, const Program& program, const std::vector<std::size_t>& instructions,
             const std::string& text);

}  // namespace pipert
