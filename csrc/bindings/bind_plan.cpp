#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/index.h"
#include "bindings/bind.h"
#include "plan/lower.h"

namespace py = pybind11;

namespace pipert {
namespace {

template <std::size_t kMost>
py::list list_of(const Few<std::int32_t, kMost>& ids) {
  py::list result;
  for (const std::int32_t id : ids) result.append(id);
  return result;
}

const char* kind_of(const Recv&) { return "recv"; }
const char* kind_of(const Run&) { return "run"; }
const char* kind_of(const Send&) { return "send"; }
const char* kind_of(const Release&) { return "release"; }
const char* kind_of(const Move&) { return "move"; }

py::tuple describe(const MessageKey& message) {
  const char* kind = message.kind == MessageKind::kActivation ? "activation" : "gradient";
  return py::make_tuple(kind, message.stage, message.microbatch);
}

// An instruction as a dict, for tests and tools, with what its kind has.
py::dict describe(const Program& program, std::size_t at) {
  using namespace py::literals;
  const Instruction& instruction = program.instructions[at];
  py::dict result(
      "lane"_a = instruction.lane, "waits"_a = list_of(instruction.waits),
      "mark"_a = instruction.mark == kNoMark ? py::object(py::none()) : py::cast(instruction.mark),
      "text"_a = to_string(program, instruction));
  const auto add = [&](const auto& op) {
    result["kind"] = kind_of(op);
    if constexpr (requires { op.sequence; }) {
      result["message"] = describe(op.message);
      result["sequence"] = op.sequence;
      result["slot"] = op.slot;
    } else {
      result["action"] = op.action;
    }
    if constexpr (requires { op.reads; }) {
      py::list reads;
      py::list keeps;
      for (const Read& read : op.reads) {
        reads.append(read.slot);
        keeps.append(read.keeps == kNoSlot ? py::object(py::none()) : py::cast(read.keeps));
      }
      result["reads"] = std::move(reads);
      result["keeps"] = std::move(keeps);
      result["writes"] = list_of(op.writes);
    }
  };
  std::visit(add, instruction.op);
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

LowerOptions make_options(int receive_slots, std::optional<int> send_slots, bool joint_pairs,
                          const std::optional<StageGraph>& stage_graph) {
  return {.receive_slots = receive_slots,
          .send_slots = send_slots,
          .joint_pairs = joint_pairs,
          .stage_graph = stage_graph.value_or(StageGraph{})};
}

void bind_lowering_class(py::module_& module) {
  py::class_<Lowering>(module, "Lowering",
                       R"(A schedule that is ready to be lowered, one rank at a time.

`lowering[rank]` makes that rank's Program, anew each time; len(lowering) is the number of ranks. What
all ranks share is much smaller than their Programs, of which each process of a large pipeline needs
one. Arguments and errors are those of `lower`.)")
      .def(py::init([](const Schedule& schedule, int receive_slots, std::optional<int> send_slots,
                       bool joint_pairs, const std::optional<StageGraph>& stage_graph) {
             return std::make_unique<Lowering>(
                 schedule, make_options(receive_slots, send_slots, joint_pairs, stage_graph));
           }),
           py::arg("schedule"), py::kw_only(), py::arg("receive_slots") = 2,
           py::arg("send_slots") = py::none(), py::arg("joint_pairs") = false,
           py::arg("stage_graph") = py::none(), py::keep_alive<1, 2>(),
           py::call_guard<py::gil_scoped_release>())
      .def("__getitem__", &Lowering::program, py::arg("rank"),
           py::call_guard<py::gil_scoped_release>())
      .def("__len__", &Lowering::num_ranks);
}

void bind_lower(py::module_& module) {
  module.def(
      "lower",
      [](const Schedule& schedule, int receive_slots, std::optional<int> send_slots,
         bool joint_pairs, const std::optional<StageGraph>& stage_graph) {
        return lower(schedule, make_options(receive_slots, send_slots, joint_pairs, stage_graph));
      },
      py::arg("schedule"), py::kw_only(), py::arg("receive_slots") = 2,
      py::arg("send_slots") = py::none(), py::arg("joint_pairs") = false,
      py::arg("stage_graph") = py::none(), py::call_guard<py::gil_scoped_release>(),
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
    stage_graph: which stages read whose results beyond the chain of stages; None if none do.

Returns:
    A list of Programs, in rank order. `Lowering` makes them one at a time.

Raises:
    ValueError: the schedule is not valid (with verify's counterexample), receive_slots or
        send_slots < 1, or a stage graph with stages that the schedule doesn't have.)");
}

void bind_program(py::module_& module) {
  py::class_<Program>(
      module, "Program",
      R"(What one rank does in one step: instructions on lanes, with marks and slots.

str(program) prints it. Made by `Schedule` lowering inside `Pipeline`, or by `lower`.)")
      .def_readonly("rank", &Program::rank)
      .def_readonly("num_ranks", &Program::num_ranks)
      .def_readonly("num_stages", &Program::num_stages)
      .def_readonly("num_copies", &Program::num_copies)
      .def_readonly("num_microbatches", &Program::num_microbatches)
      .def_readonly("num_marks", &Program::num_marks)
      .def_readonly("stage_graph", &Program::stage_graph,
                    "What stages read beyond the chain, in each copy of the model.")
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
          R"(A list of dicts, in the order of issue.

Each has `kind` ("recv", "run", "send", "release" or "move"), `lane`, `waits` and `mark` (None if it sets
none), and `text`. A transfer has its `message` as (kind, stage, microbatch), named after the action
that made it, `sequence` and `slot`; a run and a move their `action`, a run the slots that it `reads`
and `writes`, and for each one that it reads the slot in which it `keeps` the message for a later stage of
its rank, or None.)")
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
}

}  // namespace

void bind_plan(py::module_& module) {
  bind_program(module);
  bind_lowering_class(module);
  bind_lower(module);
}

}  // namespace pipert
