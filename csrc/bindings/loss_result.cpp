#include "bindings/loss_result.h"

#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <c10/core/ScalarType.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>

#include "base/error.h"
#include "base/index.h"

namespace py = pybind11;

namespace pipert {
namespace {

using Kind = Structure::Kind;

std::string_view name_of(Kind kind) {
  switch (kind) {
    case Kind::kTensor:
      return "tensor";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kTuple:
      return "tuple";
    case Kind::kList:
      return "list";
    case Kind::kDict:
      return "dict";
  }
  return "value";
}

[[noreturn]] void refuse(const Structure& returned) {
  const std::string size =
      returned.kind == Kind::kTuple ? concat(" of ", returned.children.size()) : "";
  throw TypeError(
      concat("the loss function must return a tensor, got ", name_of(returned.kind), size,
             ": expected one tensor, (loss, dict of metrics), or a dict of losses by name"));
}

// A metric: of its own memory, since losses may come in memory as large as their input, and other
// numbers in a buffer that the next microbatch adds to.
at::Tensor copy_of(const at::Tensor& number) { return number.detach().clone(); }

// Takes a result apart from front to back.
class Reader {
 public:
  explicit Reader(const FlatValue& value) : value_(value) {}

  LossResult read() {
    const Structure& top = *value_.structure;
    if (top.kind == Kind::kDict) return read_losses(top);
    if (top.kind != Kind::kTuple || top.children.size() != 2) refuse(top);
    const Structure& second = top.children[1];
    if (second.kind != Kind::kDict) refuse(top);
    const Structure& first = top.children[0];
    LossResult result;
    if (first.kind == Kind::kTensor) {
      result.loss = next();
    } else if (first.kind == Kind::kDict) {
      result = read_losses(first);
    } else {
      refuse(top);
    }
    for (std::size_t i = 0; i + 1 < second.children.size(); i += 2) {
      std::string name = read_name(second.children[i]);
      at::Tensor number = read_number(name, second.children[i + 1], result.loss.device());
      add(result.metrics, std::move(name), std::move(number));
    }
    return result;
  }

 private:
  LossResult read_losses(const Structure& dict) {
    if (dict.children.empty())
      throw ValueError("the loss function returned a dict without losses, expected at least one");
    LossResult result;
    for (std::size_t i = 0; i + 1 < dict.children.size(); i += 2) {
      std::string name = read_name(dict.children[i]);
      if (dict.children[i + 1].kind != Kind::kTensor) {
        throw TypeError(concat("the loss ", name, " must be a tensor, got ",
                               name_of(dict.children[i + 1].kind)));
      }
      const at::Tensor loss = one_number(concat("the loss ", name), next());
      result.loss = result.loss.defined() ? result.loss.add(loss) : loss;
      add(result.metrics, std::move(name), copy_of(loss));
    }
    return result;
  }

  static std::string read_name(const Structure& key) {
    if (key.kind == Kind::kString) return key.text;
    throw TypeError(
        concat("losses and metrics must have names, got a key that is a ", name_of(key.kind)));
  }

  // A Python number becomes a tensor beside the loss, so that one recording has both.
  at::Tensor read_number(const std::string& name, const Structure& value, at::Device device) {
    if (value.kind == Kind::kTensor)
      return copy_of(one_number(concat("the metric ", name), next()));
    const bool is_whole = value.kind == Kind::kInt || value.kind == Kind::kBool;
    if (!is_whole && value.kind != Kind::kFloat) {
      throw TypeError(concat("the metric ", name, " must be a number, or a tensor of one, got ",
                             name_of(value.kind)));
    }
    return at::full({}, is_whole ? static_cast<double>(value.integer) : value.real,
                    at::TensorOptions().dtype(at::kDouble).device(device));
  }

  static at::Tensor one_number(const std::string& what, const at::Tensor& tensor) {
    if (tensor.numel() == 1) return tensor;
    std::string shape;
    for (const std::int64_t size : tensor.sizes()) shape += concat(shape.empty() ? "" : ", ", size);
    throw ValueError(concat(what, " must be one number, got a tensor of shape [", shape, "]"));
  }

  static void add(Metrics& metrics, std::string name, at::Tensor number) {
    for (const auto& [other, value] : metrics) {
      if (other == name) throw ValueError(concat("there are two metrics named ", name));
    }
    metrics.emplace_back(std::move(name), std::move(number));
  }

  const at::Tensor& next() { return value_.tensors[next_++]; }

  const FlatValue& value_;
  std::size_t next_ = 0;
};

// The microbatches' values of one metric as one tensor, of a dtype and device that all fit.
at::Tensor stack(std::vector<at::Tensor> values) {
  at::ScalarType dtype = at::ScalarType::Undefined;
  at::Device device = at::kCPU;
  bool is_complete = true;
  for (const at::Tensor& value : values) {
    is_complete = is_complete && value.defined();
    if (!value.defined()) continue;
    if (dtype == at::ScalarType::Undefined) device = value.device();
    dtype = dtype == at::ScalarType::Undefined ? value.scalar_type()
                                               : at::promoteTypes(dtype, value.scalar_type());
  }
  if (!is_complete && !at::isFloatingType(dtype)) dtype = at::kDouble;
  for (at::Tensor& value : values) {
    value = value.defined() ? value.reshape({}).to(device, dtype)
                            : at::full({}, std::numeric_limits<double>::quiet_NaN(),
                                       at::TensorOptions().dtype(dtype).device(device));
  }
  return at::stack(values);
}

}  // namespace

LossResult loss_result(const FlatValue& returned) {
  if (returned.structure == nullptr) return {.loss = returned.tensors.front(), .metrics = {}};
  return Reader(returned).read();
}

py::dict stack_metrics(const py::dict& of_microbatches, int num_microbatches) {
  py::dict result;
  for (const auto& [microbatch, metrics] : of_microbatches) {
    for (const auto& [name, value] : py::reinterpret_borrow<py::dict>(metrics)) {
      if (result.contains(name)) continue;
      std::vector<at::Tensor> values(as_index(num_microbatches));
      for (const auto& [m, others] : of_microbatches) {
        const auto of = py::reinterpret_borrow<py::dict>(others);
        if (of.contains(name))
          values[as_index(py::cast<int>(m))] = THPVariable_Unpack(py::object(of[name]).ptr());
      }
      result[name] = py::cast(stack(std::move(values)));
    }
  }
  return result;
}

}  // namespace pipert
