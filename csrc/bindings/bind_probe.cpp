// What channels by themselves take, for benchmarks/channels.py and gpu_channels.py.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "runtime/channel_probe.h"
#include "transport/push_probe.h"

namespace py = pybind11;

namespace pipert {
namespace {

// Between rank 0, which times, and rank 1, which answers.
ProbeOptions between(std::int64_t num_bytes, int num_messages, std::int64_t epoch,
                     const std::string& device) {
  return {.there = {0, 1},
          .back = {1, 0},
          .num_bytes = num_bytes,
          .num_messages = num_messages,
          .epoch = epoch,
          .device = c10::Device(device)};
}

// Seconds of the device, and of the host that gave it the work.
py::object as_pair(const PushProbe::Timed& timed) {
  return py::make_tuple(timed.seconds, timed.issue_seconds);
}

template <typename... Arguments>
auto timed(PushProbe::Timed (PushProbe::*method)(Arguments...)) {
  return [method](PushProbe& probe, Arguments... arguments) {
    PushProbe::Timed timed;
    {
      const py::gil_scoped_release release;
      timed = (probe.*method)(arguments...);
    }
    return as_pair(timed);
  };
}

void bind_push_probe(py::module_& module) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<PushProbe, std::shared_ptr<PushProbe>>(
      module, "PushProbe",
      "Pushes and flags between two processes on GPUs, timed by their source: seconds of the "
      "device, and of the host before.")
      .def_static("make", &make_push_probe, py::arg("num_streams"), release,
                  "By the source, with so many streams that push. Raises RuntimeError.")
      .def_static("open", &open_push_probe, py::arg("name"), release, "By the destination.")
      .def_property_readonly("name", &PushProbe::name, "By which its destination opens it.")
      .def("prepare", &PushProbe::prepare, py::arg("num_bytes"), release,
           "For pushes of so many bytes: first the destination, then the source.")
      .def("answer_pushes", &PushProbe::answer_pushes, py::arg("count"), py::arg("copies_out"),
           release, "By the destination, before the source times as many.")
      .def("answer_hops", &PushProbe::answer_hops, py::arg("count"), py::arg("num_bytes"), release,
           "By the destination, before the source times as many.")
      .def("finish", &PushProbe::finish, release, "Until this end's stream has passed.")
      .def("time_pushes", timed(&PushProbe::time_pushes), py::arg("count"),
           "With the flags that tell of them.")
      .def("time_bare_pushes", timed(&PushProbe::time_bare_pushes), py::arg("count"),
           "Copies into the same slots, that nobody is told of.")
      .def("time_copies", timed(&PushProbe::time_copies), py::arg("count"),
           py::arg("num_destinations"), "As many copies within the device.")
      .def("time_hops", timed(&PushProbe::time_hops), py::arg("count"), py::arg("num_bytes"),
           "Flags there and back, before each a copy of so many bytes within the device.");
}

}  // namespace

// REQUIRES bind_transport.
void bind_probe(py::module_& module) {
  bind_push_probe(module);
  module.def(
      "time_echoes",
      [](ExternalChannels& channels, int rank, std::int64_t num_bytes, int num_messages,
         std::int64_t epoch, const std::string& device) {
        return time_echoes(channels, rank == 0, between(num_bytes, num_messages, epoch, device));
      },
      py::arg("channels"), py::kw_only(), py::arg("rank"), py::arg("num_bytes"),
      py::arg("num_messages"), py::arg("epoch"), py::arg("device") = "cpu",
      py::call_guard<py::gil_scoped_release>(),
      "Seconds of each round trip between ranks 0 and 1; none on rank 1, which calls it too.");
  module.def(
      "time_calls",
      [](ExternalChannels& channels, int rank, std::int64_t num_bytes, int num_messages,
         std::int64_t epoch, const std::string& device) {
        ProbeOptions options = between(num_bytes, num_messages, epoch, device);
        options.num_slots = num_messages;
        return rank == 0 ? time_sends(channels, options) : time_takes(channels, options);
      },
      py::arg("channels"), py::kw_only(), py::arg("rank"), py::arg("num_bytes"),
      py::arg("num_messages"), py::arg("epoch"), py::arg("device") = "cpu",
      py::call_guard<py::gil_scoped_release>(),
      "Seconds that each send takes the host of rank 0, and each take that of rank 1, which calls "
      "it when rank 0's has returned.");
  module.def(
      "time_stream",
      [](ExternalChannels& channels, int rank, std::int64_t num_bytes, int num_messages,
         std::int64_t epoch, bool reads, const std::string& device) {
        ProbeOptions options = between(num_bytes, num_messages, epoch, device);
        options.reads = reads;
        return time_stream(channels, rank == 0, options);
      },
      py::arg("channels"), py::kw_only(), py::arg("rank"), py::arg("num_bytes"),
      py::arg("num_messages"), py::arg("epoch"), py::arg("reads"), py::arg("device") = "cpu",
      py::call_guard<py::gil_scoped_release>(),
      "Seconds in which rank 1 gets so many messages of rank 0, two of them on their way. `reads`: "
      "it looks at each cache line of what it got.");
  module.def("time_copies", &time_copies, py::kw_only(), py::arg("num_bytes"), py::arg("count"),
             py::arg("num_destinations"), py::call_guard<py::gil_scoped_release>(),
             "Seconds of each of so many memcpys of one buffer, into so many others by turns.");
}

}  // namespace pipert
