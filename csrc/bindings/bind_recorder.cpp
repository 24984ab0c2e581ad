// What pipert/captured is made of where it records: not for users.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/python_failure.h"
#include "bindings/python_graph.h"
#include "stage/action_recorder.h"

namespace py = pybind11;

namespace pipert {
namespace {

// Nothing for what is no Exception: Ctrl-C.
std::optional<Obstacle> explain(const std::exception_ptr& cause) {
  const py::gil_scoped_acquire gil;
  const py::object error = python_exception(cause);
  if (!py::isinstance(error, py::handle(PyExc_Exception))) return std::nullopt;
  const std::string name = py::str(py::type::of(error).attr("__name__"));
  const std::string text = concat(name, ": ", std::string(py::str(error)));
  const bool is_passing =
      py::isinstance(error, py::module_::import("torch").attr("OutOfMemoryError"));
  return Obstacle{text.substr(0, text.find('\n')), !is_passing};
}

// What dies during a recording may not free device memory.
void collect_garbage() {
  const py::gil_scoped_acquire gil;
  PyGC_Collect();
}

std::unique_ptr<GraphPool> make_pool(const std::string& device) {
  auto pool = make_graph_pool(c10::Device(device));
  if (pool == nullptr)
    throw ValueError(concat("a device with graphs was expected, CUDA's, got ", device));
  return pool;
}

std::shared_ptr<ActionRecorder> make_recorder(const std::string& device, py::object make_graph) {
  auto pool =
      make_graph.is_none() ? make_pool(device) : make_python_graph_pool(std::move(make_graph));
  return std::make_shared<ActionRecorder>(
      c10::Device(device), std::move(pool),
      ActionRecorder::Hooks{.before_recording = &collect_garbage, .explain = &explain});
}

// "eager", "record" or "replay"; and why it isn't the last, or not for the whole pass: or nothing.
std::pair<std::string, std::optional<std::string>> end(ActionRecorder& recorder, bool completed) {
  const ActionRecorder::End end = recorder.end(completed);
  const char* const mode = end.mode == PassMode::kEager    ? "eager"
                           : end.mode == PassMode::kRecord ? "record"
                                                           : "replay";
  if (end.reason.empty()) return {mode, std::nullopt};
  return {mode, end.reason};
}

}  // namespace

void bind_recorder(py::module_& module) {
  using NoGil = py::call_guard<py::gil_scoped_release>;
  py::class_<DeviceGraph>(module, "DeviceGraph", "What a thread gives a device, recorded.")
      .def("begin", &DeviceGraph::begin, NoGil())
      .def("end", &DeviceGraph::end, NoGil())
      .def("abandon", &DeviceGraph::abandon, NoGil())
      .def("launch", &DeviceGraph::launch, NoGil());
  py::class_<GraphPool>(module, "GraphPool", "Graphs that share their memory; not for users.")
      .def(py::init(&make_pool), py::arg("device"))
      .def("make", &GraphPool::make);
  py::class_<PassRecordings, std::shared_ptr<PassRecordings>>(
      module, "PassRecordings", "What a rank has recorded of one kind of pass; not for users.")
      .def(py::init<int>(), py::arg("num_warmups"))
      .def_readwrite("batch", &PassRecordings::batch)
      .def("is_warm", &PassRecordings::is_warm)
      .def("drop", &PassRecordings::drop, py::arg("reason"), py::arg("is_final"))
      .def("drop_oldest", &PassRecordings::drop_oldest)
      .def_property_readonly("num_recordings", &PassRecordings::num_recordings);
  py::class_<ActionRecorder, std::shared_ptr<ActionRecorder>>(
      module, "ActionRecorder",
      "Has the stages of one rank record their actions, and replay them; not for users.")
      .def(py::init(&make_recorder), py::arg("device"), py::arg("make_graph") = py::none())
      .def("begin", &ActionRecorder::begin, py::kw_only(), py::arg("recordings"), py::arg("leaves"),
           py::arg("batch"), py::arg("reads_copies"))
      .def("end", &end, py::arg("completed"));
}

}  // namespace pipert
