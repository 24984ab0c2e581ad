#include "plan/mark_use.h"

#include "base/error.h"

namespace pipert {

MarkUse::MarkUse(const Program& program)
    : setters_(as_index(program.num_marks), kNobody), awaited_(as_index(program.num_marks)) {
  for (std::size_t i = 0; i < program.instructions.size() && !finding_; ++i) {
    finding_ = use(program, i);
  }
}

MaybeFinding MarkUse::use(const Program& program, std::size_t instruction) {
  const Instruction& at = program.instructions[instruction];
  for (const MarkId mark : at.waits) {
    awaited_[as_index(mark)] = true;
    if (setters_[as_index(mark)] != kNobody) continue;
    return find(
        Flaw::kMark, program, {instruction},
        concat(name_of(program, instruction), " waits for m", mark, ", which nobody set before"));
  }
  if (at.mark == kNoMark) return std::nullopt;
  std::size_t& setter = setters_[as_index(at.mark)];
  if (setter != kNobody) {
    return find(Flaw::kMark, program, {setter, instruction},
                concat(name_of(program, instruction), " sets m", at.mark, ", which ",
                       name_of(program, setter), " sets too"));
  }
  setter = instruction;
  return std::nullopt;
}

std::vector<Unneeded> MarkUse::unneeded(Rank rank) const {
  std::vector<Unneeded> result;
  for (std::size_t mark = 0; mark < setters_.size(); ++mark) {
    if (setters_[mark] == kNobody || awaited_[mark]) continue;
    result.push_back({rank, setters_[mark], static_cast<MarkId>(mark), /*is_wait=*/false});
  }
  return result;
}

}  // namespace pipert
