#include "bindings/native_program.h"

#include <pybind11/stl.h>
#include <torch/csrc/jit/python/pybind_utils.h>

#include <string>
#include <utility>

#include "base/error.h"

namespace py = pybind11;

namespace pipert {
namespace {

c10::IValue number_of(py::handle value) {
  if (py::isinstance<py::bool_>(value)) return py::cast<bool>(value);
  if (py::isinstance<py::int_>(value)) return py::cast<std::int64_t>(value);
  return py::cast<double>(value);
}

// `type`: of the schema's argument; null for a number. `length`: of a list that one number fills.
NativeArgument argument_of(py::handle given, const c10::TypePtr& type, std::optional<int> length) {
  const auto pair = py::cast<py::tuple>(given);
  const auto kind = py::cast<std::string>(pair[0]);
  NativeArgument argument;
  if (kind == "constant") {
    argument.kind = NativeArgument::Kind::kConstant;
    argument.constant =
        type == nullptr ? number_of(pair[1]) : torch::jit::toIValue(pair[1], type, length);
  } else if (kind == "list") {
    argument.kind = NativeArgument::Kind::kList;
    c10::TypePtr list = type;
    if (const auto optional = list->cast<c10::OptionalType>()) list = optional->getElementType();
    const auto list_type = list->cast<c10::ListType>();
    if (list_type == nullptr) throw ValueError(concat("expected ", type->str(), ", got a list"));
    for (const py::handle item : pair[1])
      argument.items.push_back(argument_of(item, list_type->getElementType(), std::nullopt));
  } else {
    if (kind != "register" && kind != "scalar")
      throw ValueError(concat("expected an argument's kind, got ", kind));
    argument.kind =
        kind == "scalar" ? NativeArgument::Kind::kScalar : NativeArgument::Kind::kRegister;
    argument.index = py::cast<int>(pair[1]);
  }
  return argument;
}

CallOperator call_of(const py::tuple& given) {
  const auto name = py::cast<std::string>(given[1]);
  const auto overload = py::cast<std::string>(given[2]);
  const auto op = c10::Dispatcher::singleton().findSchema({name, overload});
  if (!op.has_value())
    throw ValueError(concat("the dispatcher has no operator ", name, ".", overload));
  CallOperator call{.op = *op, .arguments = {}};
  const auto& schema = op->schema().arguments();
  const auto arguments = py::cast<py::list>(given[3]);
  if (arguments.size() != schema.size())
    throw ValueError(concat(name, " takes ", schema.size(), " arguments, got ", arguments.size()));
  for (std::size_t i = 0; i < schema.size(); ++i) {
    std::optional<int> length;
    if (schema[i].N().has_value()) length = static_cast<int>(*schema[i].N());
    call.arguments.push_back(argument_of(arguments[i], schema[i].type(), length));
  }
  return call;
}

Autocast autocast_of(const py::tuple& given) {
  Autocast mode;
  mode.device = c10::Device(py::cast<std::string>(given[1])).type();
  mode.dtype = py::cast<c10::ScalarType>(given[2]);
  mode.enabled = py::cast<bool>(given[3]);
  mode.cache = py::cast<bool>(given[4]);
  return mode;
}

NativeInstruction instruction_of(const py::tuple& given) {
  const auto kind = py::cast<std::string>(given[0]);
  const auto outputs = [&](std::size_t at) { return py::cast<std::vector<int>>(given[at]); };
  if (kind == "call") {
    auto call = call_of(given);
    auto registers = outputs(4);
    return {std::move(call), std::move(registers), py::cast<std::string>(given[5])};
  }
  if (kind == "scalar") {
    ComputeScalar compute{.op = scalar_op(py::cast<std::string>(given[1])), .arguments = {}};
    for (const py::handle argument : given[2])
      compute.arguments.push_back(argument_of(argument, nullptr, std::nullopt));
    return {std::move(compute), outputs(3), {}};
  }
  if (kind == "size" || kind == "item") {
    auto argument = argument_of(given[1], nullptr, std::nullopt);
    const auto at = py::cast<std::int64_t>(given[2]);
    if (kind == "size") return {TakeSize{std::move(argument), at}, outputs(3), {}};
    return {TakeItem{std::move(argument), at}, outputs(3), {}};
  }
  if (kind == "grad_mode") return {GradMode{py::cast<bool>(given[1])}, {}, {}};
  if (kind == "autocast") return {autocast_of(given), {}, {}};
  if (kind == "leave") return {LeaveMode{}, {}, {}};
  if (kind == "layer") {
    const auto owner = py::cast<std::int64_t>(given[1]);
    auto layers = py::cast<std::vector<std::int64_t>>(given[2]);
    return {EnterLayer{{.owner = owner, .layers = std::move(layers)}}, {}, {}};
  }
  throw ValueError(concat("expected an instruction, got ", kind));
}

}  // namespace

std::vector<NativeInstruction> instructions_of(const py::list& instructions) {
  // As Python's bindings do, where an operator takes a tensor and gets a number.
  const torch::jit::ToIValueAllowNumbersAsTensors allow(true);
  std::vector<NativeInstruction> result;
  for (const py::handle given : instructions)
    result.push_back(instruction_of(py::cast<py::tuple>(given)));
  return result;
}

std::vector<NativeArgument> outputs_of(const py::list& outputs) {
  std::vector<NativeArgument> result;
  for (const py::handle given : outputs)
    result.push_back(argument_of(given, c10::TensorType::get(), std::nullopt));
  return result;
}

std::vector<SizeStep> size_steps_of(const py::list& steps) {
  std::vector<SizeStep> result;
  for (const py::handle given : steps) {
    const auto step = py::cast<py::tuple>(given);
    const auto kind = py::cast<std::string>(step[0]);
    if (kind == "constant") {
      result.push_back(
          {.kind = SizeStep::Kind::kConstant, .constant = py::cast<std::int64_t>(step[1])});
      continue;
    }
    SizeStep made;
    made.kind = kind == "size"     ? SizeStep::Kind::kSize
                : kind == "stride" ? SizeStep::Kind::kStride
                                   : SizeStep::Kind::kOp;
    if (made.kind == SizeStep::Kind::kOp) made.op = scalar_op(kind);
    made.left = py::cast<std::uint32_t>(step[1]);
    made.right = step.size() > 2 ? py::cast<std::uint32_t>(step[2]) : made.left;
    result.push_back(made);
  }
  return result;
}

}  // namespace pipert
