#include "plan/finding.h"

#include "base/error.h"

namespace pipert {

InstructionPlace place_of(const Program& program, std::size_t instruction) {
  std::string text = to_string(program, program.instructions[instruction]);
  text.erase(std::min(text.size(), text.find("  on ")));
  return {program.rank, instruction, std::move(text)};
}

std::string name_of(const Program& program, std::size_t instruction) {
  return concat('%', instruction, " (", place_of(program, instruction).text, ')');
}

Finding find(Flaw flaw, const Program& program, const std::vector<std::size_t>& instructions,
             const std::string& text) {
  Finding finding{.flaw = flaw, .message = concat("rank ", program.rank, ": ", text), .places = {}};
  for (const std::size_t i : instructions) finding.places.push_back(place_of(program, i));
  return finding;
}

}  // namespace pipert
