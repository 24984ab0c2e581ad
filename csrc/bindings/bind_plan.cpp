#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "base/index.h"
#include "bindings/bind.h"
#include "plan/lower.h"
#include "plan/prove.h"

namespace py = pybind11;

namespace pipert {
namespace {

template <std::size_t kMost>
py::list list_of(const FewIds<kMost>& ids) {
  py::list result;
  for (const std::int32_t id : ids) result.append(id);
  return result;
}

// An instruction as a dict, for tests and tools; None stands for what its kind doesn't have.
py::dict describe(const Program& program, std::size_t at) {
  using namespace py::literals;
  const Instruction& instruction = program.instructions[at];
  py::dict result(
      "lane"_a = instruction.lane, "waits"_a = list_of(instruction.waits),
      "mark"_a = instruction.mark == kNoMark ? py::object(py::none()) : py::cast(instruction.mark),
      "text"_a = to_string(program, instruction));
  const auto transfer = [&](const char* kind, const auto& op) {
    result["kind"] = kind;
    result["message"] = to_string(op.message);
    result["sequence"] = op.sequence;
    result["slot"] = op.slot;
  };
  if (const auto* run = std::get_if<Run>(&instruction.op)) {
    result["kind"] = "run";
    result["action"] = run->action;
    result["reads"] = list_of(run->reads);
    result["writes"] = list_of(run->writes);
  } else if (const auto* recv = std::get_if<Recv>(&instruction.op)) {
    transfer("recv", *recv);
  } else if (const auto* send = std::get_if<Send>(&instruction.op)) {
    transfer("send", *send);
  } else if (const auto* move = std::get_if<Move>(&instruction.op)) {
    result["kind"] = "move";
    result["action"] = move->action;
  } else {
    transfer("release", std::get<Release>(instruction.op));
  }
  return result;
}

py::dict describe(const Slot& slot) {
  using namespace py::literals;
  const char* kinds[] = {"receive", "send", "local"};
  return py::dict("kind"_a = kinds[static_cast<std::size_t>(slot.kind)],
                  "source"_a = slot.edge.source, "destination"_a = slot.edge.destination,
                  "index"_a = slot.index);
}

py::dict describe(const LaneSpec& lane) {
  using namespace py::literals;
  const char* kinds[] = {"compute", "send", "receive", "offload", "reload"};
  return py::dict("kind"_a = kinds[static_cast<std::size_t>(lane.kind)],
                  "source"_a = lane.edge.source, "destination"_a = lane.edge.destination);
}

template <typename Element>
py::list describe_all(const std::vector<Element>& elements) {
  py::list result;
  for (const Element& element : elements) result.append(describe(element));
  return result;
}

LowerOptions make_options(int receive_slots, std::optional<int> send_slots, bool joint_pairs) {
  return {.receive_slots = receive_slots, .send_slots = send_slots, .joint_pairs = joint_pairs};
}

void bind_lowering(py::module_& module) {
  py::class_<Lowering>(module, "Lowering",
                       R"(A schedule that is ready to be lowered, one rank at a time.

`lowering[rank]` makes that rank's Program, anew each time; len(lowering) is the number of ranks. What
all ranks share is much smaller than their Programs, of which each process of a large pipeline needs
one. Arguments and errors are those of `lower`.)")
      .def(py::init([](const Schedule& schedule, int receive_slots, std::optional<int> send_slots,
                       bool joint_pairs) {
             return std::make_unique<Lowering>(
                 schedule, make_options(receive_slots, send_slots, joint_pairs));
           }),
           py::arg("schedule"), py::kw_only(), py::arg("receive_slots") = 2,
           py::arg("send_slots") = py::none(), py::arg("joint_pairs") = false,
           py::keep_alive<1, 2>(), py::call_guard<py::gil_scoped_release>())
      .def("__getitem__", &Lowering::program, py::arg("rank"),
           py::call_guard<py::gil_scoped_release>())
      .def("__len__", &Lowering::num_ranks);
  module.def(
      "lower",
      [](const Schedule& schedule, int receive_slots, std::optional<int> send_slots,
         bool joint_pairs) {
        return lower(schedule, make_options(receive_slots, send_slots, joint_pairs));
      },
      py::arg("schedule"), py::kw_only(), py::arg("receive_slots") = 2,
      py::arg("send_slots") = py::none(), py::arg("joint_pairs") = false,
      py::call_guard<py::gil_scoped_release>(),
      R"(Lowers a schedule to one Program for each rank.

Args:
    schedule: a Schedule that verify() accepts.
    receive_slots: receive slots of each edge whose messages are read in order; other edges get
        as many more as hold the messages that are read late.
    send_slots: the most messages of each edge that are on their way at once: a rank that would send
        another waits. None, or a schedule that could not end so: no Send waits, and a message is
        kept until a later action shows that it was read.
    joint_pairs: whether the halves of an overlapped pair stay together: what both read is there
        before either runs, and what they make is sent when both have.

Returns:
    A list of Programs, in rank order. `Lowering` makes them one at a time.

Raises:
    ValueError: the schedule is not valid (with verify's counterexample), or receive_slots or
        send_slots < 1.)");
}

// The slots stand as they are read and written: as many as the instruction has.
Program edited(Program program, std::size_t at, const std::vector<MarkId>& waits,
               std::optional<MarkId> mark, const std::vector<SlotId>& slots) {
  Instruction& instruction = program.instructions.at(at);
  instruction.waits = {};
  for (const MarkId wait : waits) instruction.waits.push_back(wait);
  instruction.mark = mark.value_or(kNoMark);
  auto slot = slots.begin();
  if (auto* run = std::get_if<Run>(&instruction.op)) {
    for (FewIds<2>* ids : {&run->reads, &run->writes}) {
      const std::size_t size = ids->size();
      *ids = {};
      for (std::size_t i = 0; i < size && slot != slots.end(); ++i) ids->push_back(*slot++);
    }
  } else if (slot != slots.end()) {
    if (auto* recv = std::get_if<Recv>(&instruction.op)) recv->slot = *slot;
    if (auto* send = std::get_if<Send>(&instruction.op)) send->slot = *slot;
    if (auto* release = std::get_if<Release>(&instruction.op)) release->slot = *slot;
  }
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

void bind_proof(py::module_& module) {
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
      py::arg("slots"), "A copy with other waits, mark and slots (reads, then writes): for tests.");
}

}  // namespace

void bind_plan(py::module_& module) {
  py::class_<Program>(
      module, "Program",
      R"(What one rank does in one step: instructions on lanes, with marks and slots.

str(program) prints it. Made by `Schedule` lowering inside `Pipeline`, or by `lower`.)")
      .def_readonly("rank", &Program::rank)
      .def_readonly("num_ranks", &Program::num_ranks)
      .def_readonly("num_stages", &Program::num_stages)
      .def_readonly("num_microbatches", &Program::num_microbatches)
      .def_readonly("num_marks", &Program::num_marks)
      .def_readonly("peak_activations", &Program::peak_activations,
                    "Most (stage, microbatch) pairs whose activations are there at any time: from "
                    "F to B (W if it is split), not while they are on the host or to be computed "
                    "again.")
      .def_property_readonly(
          "instructions",
          [](const Program& self) {
            py::list result;
            for (std::size_t i = 0; i < self.instructions.size(); ++i)
              result.append(describe(self, i));
            return result;
          },
          "A list of dicts, in the order of issue.")
      .def_readonly("joint_pairs", &Program::joint_pairs,
                    "The instructions that are a run which goes jointly with the next one.")
      .def_property_readonly("slots", [](const Program& self) { return describe_all(self.slots); })
      .def_property_readonly("lanes", [](const Program& self) { return describe_all(self.lanes); })
      .def("__len__", [](const Program& self) { return self.instructions.size(); })
      .def("__str__", [](const Program& self) { return to_string(self); })
      .def("__repr__", [](const Program& self) {
        return "<pipert.Program of rank " + std::to_string(self.rank) + ": " +
               std::to_string(self.instructions.size()) + " instructions>";
      });

  bind_lowering(module);
  bind_proof(module);
}

}  // namespace pipert
