#include "bindings/saved_tensor_hooks.h"

#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>

namespace py = pybind11;

namespace pipert {
namespace {

constexpr const char* kHandle = "pipert.SavedTensor";

using Handle = std::shared_ptr<SavedTensor>;

py::capsule make_handle(Handle tensor) {
  return py::capsule(new Handle(std::move(tensor)), kHandle, [](PyObject* capsule) {
    delete static_cast<Handle*>(PyCapsule_GetPointer(capsule, kHandle));
  });
}

py::module_ torch_hooks() { return py::module_::import("torch._C._autograd"); }

class SavingHooks final : public Saving {
 public:
  explicit SavingHooks(const std::shared_ptr<ActivationStore>& store) {
    const py::gil_scoped_acquire gil;
    const py::cpp_function pack(
        [store](const at::Tensor& tensor) { return make_handle(store->pack(tensor)); });
    const py::cpp_function unpack([](const py::capsule& handle) {
      return (*static_cast<Handle*>(PyCapsule_GetPointer(handle.ptr(), kHandle)))->unpack();
    });
    torch_hooks().attr("_push_saved_tensors_default_hooks")(pack, unpack);
  }

  ~SavingHooks() override {
    const py::gil_scoped_acquire gil;
    const py::error_scope kept;  // of the forward, if it failed
    try {
      torch_hooks().attr("_pop_saved_tensors_default_hooks")();
    } catch (py::error_already_set& error) {  // the stage's own code has taken them off
      error.discard_as_unraisable("the hooks of a forward whose activations go to the host");
    }
  }
};

}  // namespace

std::unique_ptr<Saving> save_into(const std::shared_ptr<ActivationStore>& store) {
  return std::make_unique<SavingHooks>(store);
}

}  // namespace pipert
