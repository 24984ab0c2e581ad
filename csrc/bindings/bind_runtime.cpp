#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/python_overlap.h"
#include "bindings/python_runtime.h"

namespace py = pybind11;

namespace pipert {
namespace {

// (stage, callable, is first, is last, spread, keywords, is native, keywords of the context)
using StageTuple =
    std::tuple<StageIndex, py::object, bool, bool, bool, std::optional<std::vector<std::string>>,
               bool, std::vector<std::string>>;
// (stage in its copy, rank of the other copy, is the first copy, this process's stage if its losses
// are to be told, parameters, buffers)
using SharedTuple = std::tuple<StageIndex, Rank, bool, std::optional<StageIndex>,
                               std::vector<at::Tensor>, std::vector<at::Tensor>>;
// (name in the unpartitioned model, stage that owns it, whether that is here, the ranks to exchange
// with, parameter, main gradient or None)
using TiedTuple = std::tuple<std::string, StageIndex, bool, std::vector<Rank>, at::Tensor,
                             std::optional<at::Tensor>>;
using RankTuple = std::tuple<Program, Program, std::string>;

std::unique_ptr<PythonRuntime> make_runtime(
    const std::vector<StageTuple>& stages, const std::vector<RankTuple>& ranks, py::object loss_fn,
    const py::object& overlap_fn, ExternalChannels* external, double timeout_s,
    int intra_op_threads, int spin_us, bool share_losses, std::optional<std::uint64_t> rng_seed,
    std::int64_t owner, std::map<StageIndex, std::int64_t> first_layers,
    std::map<StageIndex, std::vector<bool>> recomputed, bool measure_memory,
    const std::optional<Costs>& network, int traced_passes, bool device_times, bool profiler_ranges,
    py::object advise, const std::string& compression, std::shared_ptr<ActionRecorder> recorder,
    const std::optional<std::pair<Routes, Placement>>& routes,
    const std::optional<py::tuple>& specs) {
  std::vector<PythonStage> python_stages;
  for (const auto& [stage, callable, is_first, is_last, spread, keywords, is_native, context] :
       stages) {
    python_stages.push_back(
        {stage, callable, is_first, is_last, spread, keywords, is_native, context});
  }
  std::vector<PythonRank> python_ranks;
  for (const auto& [training, evaluation, device] : ranks) {
    python_ranks.push_back({training, evaluation, c10::Device(device)});
  }
  PythonOptions options;
  options.timeout_s = timeout_s;
  options.intra_op_threads = intra_op_threads;
  options.spin_us = spin_us;
  options.share_losses = share_losses;
  options.random = {rng_seed, owner};
  options.first_layers = std::move(first_layers);
  options.recomputed = std::move(recomputed);
  options.measure_memory = measure_memory;
  if (network.has_value()) {
    options.network =
        std::make_shared<EmulatedNetwork>(*network, python_ranks.front().training.num_ranks);
  }
  options.trace = {traced_passes, device_times, profiler_ranges};
  options.advise = std::move(advise);
  options.recorder = std::move(recorder);
  if (routes.has_value())
    options.values = std::make_shared<const MessageValues>(routes->first, routes->second);
  if (specs.has_value()) options.specs = batch_specs(*specs);
  if (compression != "none") options.compression = kernels::format_of(compression);
  return std::make_unique<PythonRuntime>(
      python_stages, std::move(python_ranks), std::move(loss_fn), overlap_fn,
      external != nullptr ? std::move(*external) : ExternalChannels(), std::move(options));
}

SharedState shared_state(PythonRuntime& self, const std::vector<SharedTuple>& stages,
                         const std::vector<TiedTuple>& weights) {
  SharedState state;
  for (const auto& [stage, peer, is_first_copy, loss_stage, parameters, buffers] : stages) {
    const Stage* losses_of = loss_stage.has_value() ? &self.run_stage(*loss_stage) : nullptr;
    state.stages.push_back({stage, peer, is_first_copy, parameters, buffers, losses_of});
  }
  for (const auto& [name, stage, is_owner, peers, parameter, main] : weights) {
    state.weights.push_back({name, stage, is_owner, peers, parameter, main.value_or(at::Tensor())});
  }
  return state;
}

// A rank's pass: (rank, trained, begun, done, ended, events), each event (issued, started, ended,
// bytes), in nanoseconds.
py::tuple trace_of(Rank rank, const PassTrace& trace) {
  py::list events;
  for (std::size_t i = 0; i < trace.num_events; ++i) {
    const TraceEvent& event = trace.events[i];
    events.append(py::make_tuple(event.issued_ns, event.started_ns, event.ended_ns, event.bytes));
  }
  return py::make_tuple(rank, trace.training, trace.begun_ns, trace.done_ns, trace.ended_ns,
                        std::move(events));
}

py::list traces(PythonRuntime& self, int ago) {
  py::list result;
  for (const auto& executor : self.runtime().executors()) {
    const int num_passes = executor->log().trace().num_passes();
    if (ago < 0 || ago >= num_passes)
      throw IndexError(concat("the trace has ", num_passes, " passes, got ", ago));
    std::optional<PassTrace> trace;
    {
      const py::gil_scoped_release no_gil;  // it may wait for the device
      trace = executor->traced(ago);
    }
    result.append(trace_of(executor->rank(), *trace));
  }
  return result;
}

std::vector<Rank> device_timed(PythonRuntime& self) {
  std::vector<Rank> ranks;
  for (const auto& executor : self.runtime().executors()) {
    if (executor->log().times_device()) ranks.push_back(executor->rank());
  }
  return ranks;
}

int num_traces(PythonRuntime& self) {
  return self.runtime().executors().front()->log().trace().num_passes();
}

// What a rank held: (rank, activations, peak in bytes or None, bytes at the start of each
// instruction and at the end).
py::list memory(PythonRuntime& self) {
  py::list result;
  for (const auto& executor : self.runtime().executors()) {
    const MemoryTrace& memory = executor->log().memory();
    py::object peak = py::none();
    if (memory.peak_bytes >= 0) peak = py::cast(memory.peak_bytes);
    result.append(py::make_tuple(executor->rank(), executor->log().peak_activations(),
                                 std::move(peak), py::cast(memory.bytes)));
  }
  return result;
}

py::dict channel_kinds(PythonRuntime& self) {
  py::dict result;
  for (const auto& executor : self.runtime().executors()) {
    for (const auto& [edge, sender] : executor->resources().senders) {
      result[py::make_tuple(edge.source, edge.destination)] = py::str(std::string(sender->kind()));
    }
    for (const auto& [edge, receiver] : executor->resources().receivers) {
      result[py::make_tuple(edge.source, edge.destination)] =
          py::str(std::string(receiver->kind()));
    }
  }
  return result;
}

// Whether a stage was seen to train others since the last call; from here on it is about `leaves`.
bool watch_leaves(PythonRuntime& self, const std::optional<std::vector<at::Tensor>>& leaves) {
  bool trains_others = false;
  for (const auto& [index, stage] : self.stages()) {
    trains_others = trains_others || stage->trains_others();
    stage->watch_leaves(leaves);
  }
  return trains_others;
}

// By stage of this process: (name, reason) of each node whose backward can't be split.
py::dict unsplit_nodes(PythonRuntime& self) {
  py::dict result;
  for (const auto& [stage, object] : self.stages()) {
    py::list nodes;
    for (const UnsplitNode& node : object->unsplit())
      nodes.append(py::make_tuple(node.name, node.reason));
    if (!nodes.empty()) result[py::int_(stage)] = nodes;
  }
  return result;
}

int num_in_flight(PythonRuntime& self) {
  int count = 0;
  for (const auto& executor : self.runtime().executors()) {
    for (const auto& [index, stage] : executor->resources().stages) count += stage->num_in_flight();
  }
  return count;
}

}  // namespace

void bind_runtime(py::module_& module) {
  py::class_<PythonHalf, std::shared_ptr<PythonHalf>>(
      module, "OverlapHalf",
      "One half of an overlapped pair, a forward or a backward, that overlap_fn calls once.")
      .def("__call__", &PythonHalf::call,
           "Runs it, without the GIL where no Python code runs. From any thread, before overlap_fn "
           "returns. Raises ValueError for a second time.")
      .def_property_readonly("action", &PythonHalf::action)
      .def_property_readonly("stage", [](const PythonHalf& self) { return self.action().stage; })
      .def_property_readonly("microbatch",
                             [](const PythonHalf& self) { return self.action().microbatch; })
      .def_property_readonly("module", &PythonHalf::module, "The stage's module or function.")
      .def("__repr__", [](const PythonHalf& self) {
        return concat("<pipert.OverlapHalf ", to_string(self.action()), ">");
      });
  py::class_<PythonRuntime>(
      module, "Runtime",
      "The ranks of this process and their threads. What pipert.Pipeline drives; not for users.")
      .def(py::init(&make_runtime), py::kw_only(), py::arg("stages"), py::arg("ranks"),
           py::arg("loss_fn"), py::arg("overlap_fn"), py::arg("external"), py::arg("timeout_s"),
           py::arg("intra_op_threads"), py::arg("spin_us"), py::arg("share_losses"),
           py::arg("rng_seed"), py::arg("owner"), py::arg("first_layers"), py::arg("recomputed"),
           py::arg("measure_memory") = false, py::arg("network") = py::none(),
           py::arg("traced_passes") = 1, py::arg("device_times") = false,
           py::arg("profiler_ranges") = false, py::arg("advise") = py::none(),
           py::arg("compression") = "none", py::arg("recorder") = py::none(),
           py::arg("routes") = py::none(), py::arg("batch_specs") = py::none())
      .def(
          "step",
          [](PythonRuntime& self, py::object args, py::object kwargs, py::object target,
             py::object loss_kwargs, bool is_cut, bool training, bool compute_loss,
             bool keep_outputs, std::int64_t step, std::int64_t begun_ns,
             const std::vector<std::tuple<at::Tensor, at::Tensor, bool>>& main_gradients,
             const std::vector<SharedTuple>& shared, const std::vector<TiedTuple>& tied,
             std::vector<double> loss_weights, py::object weigh) {
            std::vector<MainGradients::Entry> entries;
            for (const auto& [parameter, main, is_shared] : main_gradients)
              entries.push_back({parameter, main, is_shared});
            self.step(
                {std::move(args), std::move(kwargs), std::move(target), std::move(loss_kwargs),
                 std::move(loss_weights), std::move(weigh), is_cut, training, compute_loss,
                 keep_outputs, step, std::move(entries), shared_state(self, shared, tied)},
                begun_ns);
          },
          py::kw_only(), py::arg("args"), py::arg("kwargs"), py::arg("target"),
          py::arg("loss_kwargs"), py::arg("is_cut"), py::arg("training"), py::arg("compute_loss"),
          py::arg("keep_outputs"), py::arg("step"), py::arg("begun_ns"),
          py::arg("main_gradients") = std::vector<std::tuple<at::Tensor, at::Tensor, bool>>(),
          py::arg("shared") = std::vector<SharedTuple>(),
          py::arg("tied") = std::vector<TiedTuple>(),
          py::arg("loss_weights") = std::vector<double>(), py::arg("weigh") = py::none())
      .def(
          "share_weights",
          [](PythonRuntime& self, const std::vector<SharedTuple>& shared,
             const std::vector<TiedTuple>& tied) {
            self.share_weights(shared_state(self, shared, tied));
          },
          py::kw_only(), py::arg("shared"), py::arg("tied"))
      .def(
          "share_gradients",
          [](PythonRuntime& self, const std::vector<TiedTuple>& tied) {
            self.share_gradients(shared_state(self, {}, tied).weights);
          },
          py::kw_only(), py::arg("tied"))
      .def("losses", &PythonRuntime::losses)
      .def("loss_weights", &PythonRuntime::loss_weights)
      .def("kept", &PythonRuntime::kept)
      .def("withdraw", &PythonRuntime::withdraw, py::arg("text"))
      .def("running", &PythonRuntime::running)
      .def("usable", &PythonRuntime::usable)
      .def("traces", &traces, py::arg("ago"))
      .def("device_timed", &device_timed)
      .def("num_traces", &num_traces)
      .def("end_trace", &PythonRuntime::end_trace)
      .def("memory", &memory)
      .def("channels", &channel_kinds)
      .def("num_in_flight", &num_in_flight)
      .def("watch_leaves", &watch_leaves, py::arg("leaves"))
      .def("unsplit_nodes", &unsplit_nodes)
      .def("peak_activations", &PythonRuntime::peak_activations)
      .def("stage_kinds", &PythonRuntime::stage_kinds)
      .def("loss_kind", &PythonRuntime::loss_kind)
      .def("close", &PythonRuntime::close);
}

}  // namespace pipert
