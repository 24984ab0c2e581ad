// MarkUse: who sets each mark of a Program.
#pragma once

#include <cstddef>
#include <vector>

#include "base/index.h"
#include "plan/finding.h"
#include "plan/program.h"

namespace pipert {

class MarkUse {
 public:
  // REQUIRES a Program that check_form() accepts. O(instructions).
  explicit MarkUse(const Program& program);

  // A mark that is set twice, or waited for by an instruction that is not issued behind the one
  // that sets it: on a GPU such a wait is silently none.
  const MaybeFinding& finding() const { return finding_; }
  // The instruction. REQUIRES no finding, and a mark that somebody waits for or sets.
  std::size_t setter(MarkId mark) const { return setters_[as_index(mark)]; }
  // By mark; of marks that nobody sets, of no meaning.
  const std::vector<std::size_t>& setters() const { return setters_; }
  // Those that are set and that nobody waits for. REQUIRES no finding.
  std::vector<Unneeded> unneeded(Rank rank) const;

 private:
  static constexpr std::size_t kNobody = static_cast<std::size_t>(-1);

  MaybeFinding use(const Program& program, std::size_t instruction);

  std::vector<std::size_t> setters_;  // by mark
  std::vector<bool> awaited_;         // by mark
  MaybeFinding finding_;
};

}  // namespace pipert
