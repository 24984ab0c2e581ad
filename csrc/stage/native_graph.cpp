#include "stage/native_graph.h"

#include <ATen/ScalarOps.h>
#include <ATen/core/List.h>
#include <c10/util/Exception.h>

#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

bool is_whole(const c10::IValue& value) { return value.isInt() || value.isBool(); }

std::int64_t as_int(const c10::IValue& value) {
  return value.isBool() ? static_cast<std::int64_t>(value.toBool()) : value.toInt();
}

double as_double(const c10::IValue& value) {
  return is_whole(value) ? static_cast<double>(as_int(value)) : value.toDouble();
}

// As Python's bindings make a tensor of a number: it doesn't take part in type promotion.
at::Tensor wrapped_number(const c10::IValue& value) {
  at::Tensor tensor = at::scalar_to_tensor(value.toScalar());
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

c10::IValue compute_value(ScalarOp op, const c10::IValue& left, const c10::IValue& right) {
  if (op == ScalarOp::kToInt && left.isDouble())
    return static_cast<std::int64_t>(apply(op, left.toDouble(), 0.0));
  if (is_whole(left) && is_whole(right) && !gives_float(op)) {
    const std::int64_t result = apply(op, as_int(left), as_int(right));
    const bool is_bool = gives_bool(op) || (is_bitwise(op) && left.isBool() && right.isBool());
    return is_bool ? c10::IValue(result != 0) : c10::IValue(result);
  }
  const double result = apply(op, as_double(left), as_double(right));
  return gives_bool(op) ? c10::IValue(result != 0.0) : c10::IValue(result);
}

}  // namespace

void NativeGraph::set_parameter(int index, at::Tensor tensor) {
  if (index < 0 || index >= num_parameters_)
    throw IndexError(concat("no parameter ", index, " of ", num_parameters_));
  values_[as_index(num_inputs_ + index)] = std::move(tensor);
}

const at::Tensor& NativeGraph::parameter(int index) const {
  return values_[as_index(num_inputs_ + index)].toTensor();
}

std::vector<at::Tensor> NativeGraph::run(std::vector<at::Tensor> inputs) {
  TORCH_INTERNAL_ASSERT(inputs.size() == as_index(num_inputs_), "a graph of ", num_inputs_,
                        " inputs was given ", inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) values_[i] = std::move(inputs[i]);
  std::size_t at = 0;
  std::vector<at::Tensor> outputs;
  outputs.reserve(outputs_.size());
  try {
    ModeScopes scopes;
    for (; at < steps_.size(); ++at) execute(steps_[at], scopes);
    for (const Operand& output : outputs_) outputs.push_back(take(output).toTensor());
  } catch (...) {
    clear();
    rethrow(at);
  }
  clear();
  return outputs;
}

void NativeGraph::execute(const Step& step, ModeScopes& scopes) {
  switch (step.code) {
    case Code::kCall:
      return call(step);
    case Code::kScalar:
      return compute(step);
    case Code::kSize: {
      const c10::IValue tensor = take(operands_[as_index(step.first_operand)]);
      return write(step, tensor.toTensor().size(step.number));
    }
    case Code::kItem: {
      const c10::IValue list = take(operands_[as_index(step.first_operand)]);
      return write(step, list.toListRef()[static_cast<std::size_t>(step.number)]);
    }
    case Code::kGradMode:
      return scopes.enter(step.grad_mode);
    case Code::kAutocast:
      return scopes.enter(step.autocast);
    case Code::kLeave:
      return scopes.leave();
    case Code::kLayer:
      return enter_layer(layers_[static_cast<std::size_t>(step.number)]);
  }
}

void NativeGraph::call(const Step& step) {
  stack_.clear();
  const Operand* operand = operands_.data() + step.first_operand;
  for (int i = 0; i < step.num_operands; ++i) stack_.push_back(take(operand[i]));
  step.op->callBoxed(stack_);
  for (int i = 0; i < step.num_outputs; ++i) {
    const int output = outputs_of_steps_[as_index(step.first_output + i)];
    if (output >= 0) values_[as_index(output)] = std::move(stack_[as_index(i)]);
  }
  stack_.clear();
}

void NativeGraph::compute(const Step& step) {
  const c10::IValue left = take(operands_[as_index(step.first_operand)]);
  const c10::IValue right =
      step.num_operands > 1 ? take(operands_[as_index(step.first_operand + 1)]) : left;
  write(step, compute_value(step.scalar, left, right));
}

void NativeGraph::write(const Step& step, c10::IValue value) {
  const int output = outputs_of_steps_[as_index(step.first_output)];
  if (output >= 0) values_[as_index(output)] = std::move(value);
}

c10::IValue NativeGraph::take(const Operand& operand) {
  switch (operand.kind) {
    case Operand::Kind::kCopy:
      return values_[as_index(operand.index)];
    case Operand::Kind::kTake:
      return std::move(values_[as_index(operand.index)]);
    case Operand::Kind::kToTensor:
      return wrapped_number(values_[as_index(operand.index)]);
    case Operand::Kind::kToDouble:
      return as_double(values_[as_index(operand.index)]);
    case Operand::Kind::kList:
      return take_list(lists_[as_index(operand.index)]);
  }
  throw InternalError("an operand of no known kind");
}

c10::IValue NativeGraph::take_list(const List& list) {
  const auto fill = [&](auto result, const auto& convert) -> c10::IValue {
    result.reserve(list.items.size());
    for (const Operand& item : list.items) result.push_back(convert(take(item)));
    return result;
  };
  switch (list.kind) {
    case List::Kind::kTensors:
      return fill(c10::List<at::Tensor>(),
                  [](c10::IValue value) { return std::move(value).toTensor(); });
    case List::Kind::kOptionalTensors:
      return fill(c10::List<std::optional<at::Tensor>>(), [](c10::IValue value) {
        return value.isNone() ? std::optional<at::Tensor>() : std::move(value).toTensor();
      });
    case List::Kind::kInts:
      return fill(c10::List<std::int64_t>(),
                  [](const c10::IValue& value) { return as_int(value); });
    case List::Kind::kDoubles:
      return fill(c10::List<double>(), [](const c10::IValue& value) { return as_double(value); });
    case List::Kind::kBools:
      return fill(c10::List<bool>(), [](const c10::IValue& value) { return value.toBool(); });
    case List::Kind::kValues:
      return fill(c10::impl::GenericList(list.element), [](c10::IValue value) { return value; });
  }
  throw InternalError("a list of no known kind");
}

void NativeGraph::rethrow(std::size_t step) const {
  if (step >= steps_.size()) throw;
  try {
    throw;
  } catch (c10::Error& error) {
    const auto& op = steps_[step].op;
    if (op.has_value()) error.add_context(concat("in ", op->operator_name(), origins_[step]));
    throw;
  }
}

void NativeGraph::clear() noexcept {
  stack_.clear();
  for (int i = 0; i < num_inputs_; ++i) values_[as_index(i)] = {};
  for (int i = num_inputs_ + num_parameters_; i < num_registers_; ++i) values_[as_index(i)] = {};
}

}  // namespace pipert
