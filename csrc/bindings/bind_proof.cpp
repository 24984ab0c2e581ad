#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <span>

#include "base/error.h"
#include "bindings/bind.h"
#include "plan/prove.h"

namespace py = pybind11;

namespace pipert {
namespace {

template <typename Ids>
void assign(Ids& ids, std::span<const std::int32_t> given) {
  ids = {};
  for (const std::int32_t id : given) ids.push_back(id);
}

// The slots of a Run: those that it reads, those that it keeps messages in, those that it writes.
std::vector<SlotId*> slots_of(Run& run) {
  std::vector<SlotId*> slots;
  for (Read& read : run.reads) slots.push_back(&read.slot);
  for (Read& read : run.reads) {
    if (read.keeps != kNoSlot) slots.push_back(&read.keeps);
  }
  for (SlotId& slot : run.writes) slots.push_back(&slot);
  return slots;
}

std::vector<SlotId*> slots_of(Move&) { return {}; }

template <typename Transfer>
std::vector<SlotId*> slots_of(Transfer& transfer) {
  return {&transfer.slot};
}

// `slots`: as many as the instruction has.
Program edited(Program program, std::size_t at, const std::vector<MarkId>& waits,
               std::optional<MarkId> mark, std::span<const SlotId> slots) {
  Instruction& instruction = program.instructions.at(at);
  assign(instruction.waits, waits);
  instruction.mark = mark.value_or(kNoMark);
  const auto set_slots = [&](auto& op) {
    const std::vector<SlotId*> own = slots_of(op);
    if (slots.size() != own.size())
      throw ValueError(concat("expected ", own.size(), " slots, got ", slots.size()));
    for (std::size_t i = 0; i < own.size(); ++i) *own[i] = slots[i];
  };
  std::visit(set_slots, instruction.op);
  return program;
}

py::list places_of(const Proof& proof) {
  using namespace py::literals;
  py::list result;
  for (const InstructionPlace& place : proof.places) {
    result.append(py::dict("rank"_a = place.rank, "instruction"_a = place.instruction,
                           "text"_a = place.text));
  }
  return result;
}

py::list unneeded_of(const Proof& proof) {
  using namespace py::literals;
  py::list result;
  for (const Unneeded& each : proof.unneeded) {
    result.append(py::dict("rank"_a = each.rank, "instruction"_a = each.instruction,
                           "mark"_a = each.mark, "kind"_a = each.is_wait ? "wait" : "mark"));
  }
  return result;
}

void bind_class(py::module_& module) {
  py::class_<Proof>(module, "Proof", "What prove() found. True if the programs are right.")
      .def_property_readonly("ok", &Proof::ok)
      .def_property_readonly(
          "flaw",
          [](const Proof& self) {
            return self.ok() ? std::nullopt : std::optional(std::string(flaw_name(self.flaw)));
          },
          "None, malformed, mark, slot, message, state, race or deadlock.")
      .def_readonly("message", &Proof::message, "What is wrong, in words; empty if nothing is.")
      .def_property_readonly("places", &places_of,
                             R"(The instructions concerned.

A list of dicts with `rank`, `instruction` (its number) and `text`: the one that is wrong, the two that
race, or those of a cycle, each waiting for the next.)")
      .def_property_readonly("unneeded", &unneeded_of,
                             R"(Waits and marks that nobody needs.

A list of dicts with `rank`, `instruction`, `mark` and `kind`: a wait that lanes and other marks imply,
or a mark that is set and never waited for.)")
      .def_readonly("is_whole", &Proof::is_whole,
                    "Whether all ranks were looked at together; else each alone.")
      .def_readonly("num_assumed", &Proof::num_assumed,
                    "How often it was taken on trust that a Release is right; 0 if is_whole.")
      .def("__bool__", &Proof::ok)
      .def("__repr__", [](const Proof& self) {
        return self.ok() ? "<Proof: ok>" : concat("<Proof: ", self.message, ">");
      });
}

}  // namespace

// REQUIRES bind_plan.
void bind_proof(py::module_& module) {
  bind_class(module);
  module.def(
      "prove", [](const std::vector<Program>& programs) { return prove(programs); },
      py::arg("programs"), py::call_guard<py::gil_scoped_release>(),
      R"(Shows that programs are right whatever lanes and ranks do when, or names what isn't.

Every two conflicting accesses to a slot or to kept activations are ordered by lanes and marks; slots
are filled only when empty; the ends of each edge agree; each mark is set once, before it is waited
for; and no instructions wait for each other, with these slots and no other buffers.

Args:
    programs: those of all ranks, in rank order, are proved together. Others are proved each alone:
        what only other ranks can show is assumed.

Returns:
    A Proof.

Raises:
    ValueError: no program, or ones that don't belong to one pipeline.)");
  module.def(
      "edit_program",
      [](const Program& program, std::size_t instruction, const std::vector<MarkId>& waits,
         std::optional<MarkId> mark, const std::vector<SlotId>& slots) {
        return edited(program, instruction, waits, mark, slots);
      },
      py::arg("program"), py::arg("instruction"), py::kw_only(), py::arg("waits"), py::arg("mark"),
      py::arg("slots"),
      "A copy with other waits, mark and slots (reads, keeps, then writes): for tests.");
}

}  // namespace pipert
