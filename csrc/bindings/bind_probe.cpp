// What channels by themselves take, for benchmarks/channels.py.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "runtime/channel_probe.h"

namespace py = pybind11;

namespace pipert {
namespace {

// Between rank 0, which times, and rank 1, which answers.
ProbeOptions between(std::int64_t num_bytes, int num_messages, std::int64_t epoch,
                     bool reads = false) {
  return {.there = {0, 1},
          .back = {1, 0},
          .num_bytes = num_bytes,
          .num_messages = num_messages,
          .epoch = epoch,
          .reads = reads};
}

}  // namespace

// REQUIRES bind_transport.
void bind_probe(py::module_& module) {
  module.def(
      "time_echoes",
      [](ExternalChannels& channels, int rank, std::int64_t num_bytes, int num_messages,
         std::int64_t epoch) {
        return time_echoes(channels, rank == 0, between(num_bytes, num_messages, epoch));
      },
      py::arg("channels"), py::kw_only(), py::arg("rank"), py::arg("num_bytes"),
      py::arg("num_messages"), py::arg("epoch"), py::call_guard<py::gil_scoped_release>(),
      "Seconds of each round trip between ranks 0 and 1; none on rank 1, which calls it too.");
  module.def(
      "time_stream",
      [](ExternalChannels& channels, int rank, std::int64_t num_bytes, int num_messages,
         std::int64_t epoch, bool reads) {
        return time_stream(channels, rank == 0, between(num_bytes, num_messages, epoch, reads));
      },
      py::arg("channels"), py::kw_only(), py::arg("rank"), py::arg("num_bytes"),
      py::arg("num_messages"), py::arg("epoch"), py::arg("reads"),
      py::call_guard<py::gil_scoped_release>(),
      "Seconds in which rank 1 gets so many messages of rank 0, two of them on their way. `reads`: "
      "it looks at each cache line of what it got.");
  module.def("time_copies", &time_copies, py::kw_only(), py::arg("num_bytes"), py::arg("count"),
             py::arg("num_destinations"), py::call_guard<py::gil_scoped_release>(),
             "Seconds of each of so many memcpys of one buffer, into so many others by turns.");
}

}  // namespace pipert
