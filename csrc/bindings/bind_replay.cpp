// What pipert/captured/steps.py is made of: not for users.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <utility>
#include <vector>

#include "bindings/bind.h"
#include "bindings/replay.h"

namespace py = pybind11;

namespace pipert {
namespace {

using Tensors = std::vector<at::Tensor>;
using Gradients = std::vector<std::optional<at::Tensor>>;

Gradients gradients(PassConditions& conditions) {
  Gradients result;
  for (at::Tensor& gradient : conditions.leaves().gradients()) {
    result.emplace_back();
    if (gradient.defined()) result.back() = std::move(gradient);
  }
  return result;
}

Tensors or_undefined(const Gradients& given) {
  Tensors gradients;
  gradients.reserve(given.size());
  for (const auto& gradient : given) gradients.push_back(gradient.value_or(at::Tensor()));
  return gradients;
}

std::shared_ptr<Replay> make_replay(std::shared_ptr<PassConditions> conditions,
                                    std::shared_ptr<TensorSlot> inputs,
                                    std::shared_ptr<TensorSlot> results, const Gradients& gradients,
                                    py::object prepare, py::object launch,
                                    std::shared_ptr<LastStream> last) {
  Replay::Recorded recorded{std::move(inputs), std::move(results), or_undefined(gradients)};
  return std::make_shared<Replay>(std::move(conditions), std::move(recorded), std::move(prepare),
                                  std::move(launch), std::move(last));
}

}  // namespace

void bind_replay(py::module_& module) {
  py::class_<PassConditions, std::shared_ptr<PassConditions>>(
      module, "PassConditions",
      "What a recorded pass was made under. What pipert/captured compares; not for users.")
      .def(py::init<std::vector<py::dict>, std::vector<py::dict>, const Tensors&,
                    const c10::Device&>(),
           py::arg("dicts"), py::arg("attributes"), py::arg("others"), py::arg("device"))
      .def("state", &PassConditions::state)
      .def_property_readonly(
          "leaves", [](PassConditions& conditions) { return conditions.leaves().tensors(); })
      .def("gradients", &gradients)
      .def(
          "set_gradients",
          [](PassConditions& conditions, const Gradients& given) {
            conditions.leaves().set_gradients(or_undefined(given));
          },
          py::arg("gradients"));

  py::class_<TensorSlot, std::shared_ptr<TensorSlot>>(
      module, "TensorSlot", "Tensors side by side in one piece of memory; not for users.")
      .def(py::init<const Tensors&>(), py::arg("like"))
      .def_property_readonly("tensors", &TensorSlot::tensors)
      .def("fill", &TensorSlot::fill, py::arg("tensors"))
      .def("copies", [](const TensorSlot& slot) {
        const Tensors copies = slot.room();
        slot.read(copies);
        return copies;
      });

  py::class_<LastStream, std::shared_ptr<LastStream>>(module, "LastStream",
                                                      "Of recordings that share their memory.")
      .def(py::init<>());

  py::class_<Replay, std::shared_ptr<Replay>>(module, "Replay",
                                              "How a recorded pass is done again; not for users.")
      .def(py::init(&make_replay), py::kw_only(), py::arg("conditions"), py::arg("inputs"),
           py::arg("results"), py::arg("gradients"), py::arg("prepare"), py::arg("launch"),
           py::arg("last"))
      .def("run", &Replay::run, py::arg("batch"));
}

}  // namespace pipert
