#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/python_runtime.h"
#include "shm/process_id.h"
#include "shm/ring_reader.h"
#include "shm/ring_writer.h"
#include "transport/cuda_ipc_channel.h"
#include "transport/process_group_agreement.h"
#include "transport/process_group_board.h"
#include "transport/process_group_channel.h"
#include "transport/process_group_types.h"
#include "transport/shm_agreement.h"
#include "transport/shm_channel.h"

namespace py = pybind11;

namespace pipert {
namespace {

using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;
using SegmentPtr = std::shared_ptr<Segment>;
using CudaIpcPtr = std::shared_ptr<CudaIpcEdge>;

// What carries one directed edge: shared memory, copy engines, or (backend for CPU tensors, backend
// of the device or None).
using BackendPair = std::tuple<BackendPtr, std::optional<BackendPtr>>;
using Carrier = std::variant<SegmentPtr, CudaIpcPtr, BackendPair>;
// One directed edge of this rank: (source, destination, its carrier).
using EdgeTuple = std::tuple<Rank, Rank, Carrier>;
// The channels to and from a rank that has state of this rank's too: (rank, to it, from it).
using PeerTuple = std::tuple<Rank, Carrier, Carrier>;

// Python's None would be a segment that isn't there.
template <typename Pointer>
Pointer require(Pointer segment) {
  if (segment == nullptr)
    throw TypeError("an edge's carrier must be a segment or backends, got None");
  return segment;
}

struct Ends {
  c10::Device device;
  std::chrono::microseconds spin;

  std::unique_ptr<Sender> sender(const Carrier& carrier) const {
    if (const auto* segment = std::get_if<SegmentPtr>(&carrier))
      return make_shm_sender(require(*segment), spin);
    if (const auto* edge = std::get_if<CudaIpcPtr>(&carrier))
      return require(*edge)->make_sender(spin);
    const auto& [cpu, accelerator] = std::get<BackendPair>(carrier);
    return make_process_group_sender(cpu, accelerator.value_or(BackendPtr()));
  }

  std::unique_ptr<Receiver> receiver(const Carrier& carrier) const {
    if (const auto* segment = std::get_if<SegmentPtr>(&carrier))
      return make_shm_receiver(require(*segment), spin);
    if (const auto* edge = std::get_if<CudaIpcPtr>(&carrier))
      return require(*edge)->make_receiver(spin);
    const auto& [cpu, accelerator] = std::get<BackendPair>(carrier);
    return make_process_group_receiver(cpu, accelerator.value_or(BackendPtr()), device);
  }
};

template <typename Kind>
std::unique_ptr<Kind> make_exchange(const std::vector<PeerTuple>& peers, const Ends& ends) {
  if (peers.empty()) return nullptr;
  std::map<Rank, PeerChannels::Ends> channels;
  for (const auto& [rank, to, from] : peers) {
    channels[rank].sender = ends.sender(to);
    channels[rank].receiver = ends.receiver(from);
  }
  return std::make_unique<Kind>(PeerChannels(std::move(channels)));
}

std::unique_ptr<ExternalChannels> connect_processes(
    Rank rank, int num_ranks, const std::string& device, const std::vector<EdgeTuple>& edges,
    const std::vector<PeerTuple>& copies, const std::vector<PeerTuple>& ties,
    const std::variant<SegmentPtr, BackendPtr>& everybody, const StorePtr& board_store,
    int max_values, int spin_us) {
  const std::chrono::microseconds spin(spin_us);
  const Ends ends{c10::Device(device), spin};
  auto external = std::make_unique<ExternalChannels>();
  for (const auto& [source, destination, carrier] : edges) {
    if (source == rank) {
      external->senders[{source, destination}] = ends.sender(carrier);
    } else {
      external->receivers[{source, destination}] = ends.receiver(carrier);
    }
  }
  external->copies = make_exchange<CopyExchange>(copies, ends);
  external->ties = make_exchange<TiedExchange>(ties, ends);
  if (const auto* segment = std::get_if<SegmentPtr>(&everybody)) {
    auto meeting = std::make_unique<Meeting>(*segment, rank, num_ranks, max_values, spin);
    external->cores = meeting->cores();
    external->agreement = make_shm_agreement(std::move(meeting));
  } else {
    external->agreement = make_process_group_agreement(std::get<BackendPtr>(everybody), max_values);
  }
  external->board = make_process_group_board(board_store);
  return external;
}

void bind_segment(py::module_& module) {
  py::class_<Segment, SegmentPtr>(module, "ShmSegment",
                                  "Memory that processes of one host share. Owned by the channel "
                                  "that it is given to, removed with it.")
      .def_static(
          "make_channel", [] { return SegmentPtr(make_ring_segment()); },
          "For an edge, by its source. Raises RuntimeError: it can't be had.")
      .def_static(
          "open_channel",
          [](const std::string& name) { return SegmentPtr(open_ring_segment(name)); },
          py::arg("name"), "By its destination; the name is gone then. Raises RuntimeError.")
      .def_static(
          "make_meeting",
          [](int num_ranks, int max_values) {
            return SegmentPtr(make_meeting_segment(num_ranks, max_values));
          },
          py::arg("num_ranks"), py::arg("max_values"),
          "For the end of a step, by one rank. Raises RuntimeError: it can't be had.")
      .def_static(
          "open_meeting",
          [](const std::string& name) { return SegmentPtr(open_meeting_segment(name)); },
          py::arg("name"), "By the others. Raises RuntimeError.")
      .def_property_readonly("name", &Segment::name, "By which another process opens it.")
      .def("remove_name", &Segment::remove_name, "All who need it have it.");
}

void bind_cuda_ipc(py::module_& module) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  module.def("has_cuda_ipc", &has_cuda_ipc, "Whether this build has the cuda_ipc channel.");
  py::class_<CudaIpcEdge, CudaIpcPtr>(module, "CudaIpcEdge",
                                      "One end of an edge between GPUs of one host. Owned by the "
                                      "channel that it is given to.")
      .def_static(
          "make_channel",
          [](const std::string& device) { return make_cuda_ipc_source(c10::Device(device)); },
          py::arg("device"), release,
          "For an edge, by its source. Raises RuntimeError: it can't be had.")
      .def_static(
          "open_channel",
          [](const std::string& name, const std::string& device) {
            return open_cuda_ipc_destination(name, c10::Device(device));
          },
          py::arg("name"), py::arg("device"), release,
          "By its destination; the name is gone then. Raises RuntimeError.")
      .def("map_slots", &CudaIpcEdge::map_slots, release,
           "By its source, when the destination has it. Raises RuntimeError.")
      .def_property_readonly("name", &CudaIpcEdge::name, "By which its destination opens it.")
      .def("remove_name", &CudaIpcEdge::remove_name, "All who need it have it.");
}

// (namespace of the number, start time, number).
using ProcessTuple = std::tuple<std::uint64_t, std::uint64_t, std::int32_t>;

void bind_process(py::module_& module) {
  module.def(
      "this_process",
      [] {
        const ProcessId own = this_process();
        return ProcessTuple(own.pid_namespace, own.start_time, own.pid);
      },
      "Which process this is: what is_running takes.");
  module.def(
      "is_running",
      [](const ProcessTuple& process) {
        const auto& [pid_namespace, start_time, pid] = process;
        return is_running({pid_namespace, start_time, pid});
      },
      py::arg("process"),
      "Whether a process of this host still runs; True where that can't be known.");
}

}  // namespace

void bind_transport(py::module_& module) {
  py::class_<ExternalChannels>(
      module, "ExternalChannels",
      "The ends of the channels that leave this process. Consumed by Runtime.");
  bind_segment(module);
  bind_cuda_ipc(module);
  bind_process(module);

  module.def("connect_processes", &connect_processes, py::kw_only(), py::arg("rank"),
             py::arg("num_ranks"), py::arg("device"), py::arg("edges"), py::arg("copies"),
             py::arg("ties"), py::arg("everybody").none(false), py::arg("board_store"),
             py::arg("max_values"), py::arg("spin_us"), py::call_guard<py::gil_scoped_release>(),
             "Makes the channels of one rank out of shared memory and torch.distributed's "
             "backends. `everybody` joins all ranks, for the end of a step.");
}

}  // namespace pipert
