#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings/bind.h"
#include "bindings/python_runtime.h"
#include "transport/process_group_agreement.h"
#include "transport/process_group_board.h"
#include "transport/process_group_channel.h"
#include "transport/process_group_types.h"

namespace py = pybind11;

namespace pipert {
namespace {

using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

// One directed edge of this rank: (source, destination, backend for CPU tensors, backend of the
// device or None).
using EdgeTuple = std::tuple<Rank, Rank, BackendPtr, std::optional<BackendPtr>>;

// The channels to and from a rank that has other copies of this rank's stages: (rank, to it, from
// it), each as in EdgeTuple.
using BackendPair = std::tuple<BackendPtr, std::optional<BackendPtr>>;
using CopyTuple = std::tuple<Rank, BackendPair, BackendPair>;

std::unique_ptr<CopyExchange> make_copy_exchange(const std::vector<CopyTuple>& copies,
                                                 const c10::Device& device) {
  if (copies.empty()) return nullptr;
  std::map<Rank, CopyExchange::Peer> peers;
  for (const auto& [rank, to, from] : copies) {
    CopyExchange::Peer& peer = peers[rank];
    const auto& [to_cpu, to_accelerator] = to;
    const auto& [from_cpu, from_accelerator] = from;
    peer.sender = make_process_group_sender(to_cpu, to_accelerator.value_or(BackendPtr()));
    peer.receiver =
        make_process_group_receiver(from_cpu, from_accelerator.value_or(BackendPtr()), device);
  }
  return std::make_unique<CopyExchange>(std::move(peers));
}

std::unique_ptr<ExternalChannels> connect_processes(Rank rank, const std::string& device,
                                                    const std::vector<EdgeTuple>& edges,
                                                    const std::vector<CopyTuple>& copies,
                                                    const BackendPtr& group, const StorePtr& store,
                                                    int num_microbatches) {
  auto external = std::make_unique<ExternalChannels>();
  for (const auto& [source, destination, cpu, accelerator] : edges) {
    const BackendPtr beside = accelerator.value_or(BackendPtr());
    if (source == rank) {
      external->senders[{source, destination}] = make_process_group_sender(cpu, beside);
    } else {
      external->receivers[{source, destination}] =
          make_process_group_receiver(cpu, beside, c10::Device(device));
    }
  }
  external->copies = make_copy_exchange(copies, c10::Device(device));
  external->agreement = make_process_group_agreement(group, 2 * num_microbatches + 1);
  external->board = make_process_group_board(store);
  return external;
}

}  // namespace

void bind_transport(py::module_& module) {
  py::class_<ExternalChannels>(
      module, "ExternalChannels",
      "The ends of the channels that leave this process. Consumed by Runtime.");

  module.def("connect_processes", &connect_processes, py::kw_only(), py::arg("rank"),
             py::arg("device"), py::arg("edges"), py::arg("copies"), py::arg("group"),
             py::arg("store"), py::arg("num_microbatches"),
             py::call_guard<py::gil_scoped_release>(),
             "Makes the channels of one rank out of torch.distributed's backends.");
}

}  // namespace pipert
