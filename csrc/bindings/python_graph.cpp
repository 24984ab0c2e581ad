#include "bindings/python_graph.h"

#include <utility>

namespace py = pybind11;

namespace pipert {
namespace {

// An object that dies where the GIL is held, whoever drops it.
class Held {
 public:
  explicit Held(py::object object) : object_(std::move(object)) {}
  ~Held() {
    const py::gil_scoped_acquire gil;
    object_ = {};
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  void call(const char* method) const {
    const py::gil_scoped_acquire gil;
    object_.attr(method)();
  }
  py::object call() const { return object_(); }  // REQUIRES the GIL

 private:
  py::object object_;
};

class PythonGraph final : public DeviceGraph {
 public:
  explicit PythonGraph(py::object graph) : graph_(std::move(graph)) {}
  void begin() override { graph_.call("begin"); }
  void end() override { graph_.call("end"); }
  void abandon() noexcept override { graph_.call("abandon"); }
  void launch() override { graph_.call("launch"); }

 private:
  Held graph_;
};

class PythonGraphPool final : public GraphPool {
 public:
  explicit PythonGraphPool(py::object make) : make_(std::move(make)) {}
  std::unique_ptr<DeviceGraph> make() override {
    const py::gil_scoped_acquire gil;
    return std::make_unique<PythonGraph>(make_.call());
  }

 private:
  Held make_;
};

}  // namespace

std::unique_ptr<GraphPool> make_python_graph_pool(py::object make) {
  return std::make_unique<PythonGraphPool>(std::move(make));
}

}  // namespace pipert
