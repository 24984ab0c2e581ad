#include "bindings/python_body.h"

#include <torch/csrc/autograd/python_variable.h>

#include "base/error.h"
#include "base/index.h"
#include "bindings/python_tree.h"
#include "bindings/python_turn.h"

namespace py = pybind11;

namespace pipert {
namespace {

// The entry of one microbatch, taken out so that it is freed as soon as it has been used.
py::object take_entry(std::vector<BatchPiece>& entries, Microbatch microbatch) {
  return entries.empty() ? py::object() : entries[as_index(microbatch)].take();
}

py::object call(const py::object& callable, const py::tuple& args, const py::object& kwargs) {
  PyObject* result = PyObject_Call(callable.ptr(), args.ptr(), kwargs.ptr());
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// The GIL, in this rank's turn.
class GilHold final : public BodyHold {
 private:
  PythonTurn turn_;  // before the GIL, so that a rank that waits for its turn doesn't have it
  py::gil_scoped_acquire gil_;
};

}  // namespace

py::object BatchPiece::take() {
  if (!flat.has_value()) return std::move(object);
  return unflatten(flat->tensors, flat->structure.get());
}

PythonBody::PythonBody(StagePosition position, py::object callable, bool spread, py::object loss_fn)
    : position_(position),
      callable_(std::move(callable)),
      spread_(spread),
      loss_fn_(std::move(loss_fn)),
      output_name_(concat("stage ", position.stage, "'s output")) {}

PythonBody::~PythonBody() {
  const py::gil_scoped_acquire gil;
  callable_ = {};
  loss_fn_ = {};
  batch_ = {};
  outputs_.clear();
}

BodyResult PythonBody::forward(const RunContext& context, BodyInput input) {
  BodyResult result;  // outlives all that is made below
  result.hold = hold();
  const py::object output = call_stage(context, std::move(input));
  if (!position_.is_last) {
    FlatValue flat = flatten(output.ptr(), output_name_);
    result.tensors = std::move(flat.tensors);
    result.structure = std::move(flat.structure);
    return result;
  }
  keep_output(context, output);
  if (batch_.compute_loss) result.loss = compute_loss(context, output);
  return result;
}

bool PythonBody::trains() const {
  if (!py::hasattr(callable_, "parameters")) return false;
  for (const py::handle parameter : callable_.attr("parameters")()) {
    if (THPVariable_Check(parameter.ptr()) && THPVariable_Unpack(parameter.ptr()).requires_grad())
      return true;
  }
  return false;
}

std::unique_ptr<BodyHold> PythonBody::hold() { return std::make_unique<GilHold>(); }

py::object PythonBody::call_stage(const RunContext& context, BodyInput input) {
  input.retired.clear();
  const py::tuple args = arguments(context, std::move(input));
  return call(callable_, args, take_entry(batch_.kwargs, context.microbatch));
}

void PythonBody::keep_output(const RunContext& context, const py::object& output) {
  if (!batch_.keep_outputs) return;
  outputs_.resize(as_index(context.num_microbatches));
  outputs_[as_index(context.microbatch)] = detach_tensors(output);
}

void PythonBody::backward_failed() noexcept {
  const py::gil_scoped_acquire gil;
  PyErr_Clear();
}

py::tuple PythonBody::arguments(const RunContext& context, BodyInput input) {
  if (position_.is_first) {
    py::object args = take_entry(batch_.args, context.microbatch);
    return args ? py::reinterpret_steal<py::tuple>(args.release()) : py::tuple();
  }
  return positional(unflatten(input.tensors, input.structure.get()), spread_);
}

py::tuple PythonBody::positional(py::object value, bool spread) {
  if (spread && PyTuple_CheckExact(value.ptr()))
    return py::reinterpret_steal<py::tuple>(value.release());
  return py::make_tuple(std::move(value));
}

at::Tensor PythonBody::compute_loss(const RunContext& context, const py::object& output) {
  py::object target = take_entry(batch_.targets, context.microbatch);
  py::tuple args(target ? 2 : 1);
  args[0] = output;
  if (target) args[1] = target;
  const py::object kwargs = BatchPiece(batch_.loss_kwargs).take();
  const py::object loss = call(loss_fn_, args, kwargs.is_none() ? py::object() : kwargs);
  if (!THPVariable_Check(loss.ptr())) {
    throw TypeError(
        concat("the loss function must return a tensor, got ", Py_TYPE(loss.ptr())->tp_name));
  }
  return THPVariable_Unpack(loss.ptr());
}

std::vector<py::object> PythonBody::take_outputs() { return std::exchange(outputs_, {}); }

}  // namespace pipert
