// NativeGraph: an exported forward as a flat program, run operator by operator through torch's
// dispatcher with autograd on. No Python, and no GIL unless an operator's own kernel takes it.
//
// Registers hold IValues: first the inputs, then the parameters, then what instructions compute,
// then constants. A register is moved out where it is read for the last time, so that a tensor
// lives no longer than in the module. Bits are the module's: the same operators meet the same
// dispatcher.
//
// Owned by a stage's body; run by the rank's thread alone, changed by the caller between passes.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "random/rank_generator.h"
#include "stage/mode_scopes.h"
#include "stage/scalar_op.h"

namespace pipert {

// Where an argument comes from. As the export gives it; the graph resolves it once.
struct NativeArgument {
  enum class Kind : std::uint8_t { kRegister, kScalar, kConstant, kList };
  Kind kind = Kind::kConstant;
  int index = 0;                      // kRegister (a tensor or a list), kScalar: the register
  c10::IValue constant;               // kConstant
  std::vector<NativeArgument> items;  // kList
};

struct CallOperator {
  c10::OperatorHandle op;
  std::vector<NativeArgument> arguments;  // all of the schema's, in its order
};
struct ComputeScalar {
  ScalarOp op = ScalarOp::kAdd;
  std::vector<NativeArgument> arguments;
};
struct TakeSize {  // of a tensor along a dimension
  NativeArgument tensor;
  std::int64_t dimension = 0;
};
struct TakeItem {  // of a list
  NativeArgument list;
  std::int64_t position = 0;
};
struct LeaveMode {};
struct EnterLayer {  // as the layer's LayerHook
  LayerPlaces places;
};

struct NativeInstruction {
  std::variant<CallOperator, ComputeScalar, TakeSize, TakeItem, GradMode, Autocast, LeaveMode,
               EnterLayer>
      what;
  std::vector<int> outputs;  // registers, by result; -1: nobody reads it
  std::string origin;        // the line of the module, for errors
};

struct NativeProgram {
  int num_inputs = 0;
  int num_parameters = 0;
  int num_registers = 0;  // without constants
  std::vector<NativeInstruction> instructions;
  std::vector<NativeArgument> outputs;  // tensors
};

class NativeGraph {
 public:
  // ValueError for a register that isn't there, or isn't written where it is read.
  explicit NativeGraph(NativeProgram program);

  int num_inputs() const { return num_inputs_; }
  int num_parameters() const { return num_parameters_; }
  int num_outputs() const { return static_cast<int>(outputs_.size()); }
  int num_instructions() const { return static_cast<int>(steps_.size()); }
  // Between runs.
  void set_parameter(int index, at::Tensor tensor);
  const at::Tensor& parameter(int index) const;

  // REQUIRES `num_inputs` tensors, and that all parameters are set. Throws what operators throw,
  // with the operator and its line in the module added where the error can carry it.
  std::vector<at::Tensor> run(std::vector<at::Tensor> inputs);

 private:
  // A resolved argument.
  struct Operand {
    enum class Kind : std::uint8_t { kCopy, kTake, kToTensor, kToDouble, kList };
    Kind kind = Kind::kCopy;
    int index = 0;  // a register, or of lists_
  };
  struct List {
    enum class Kind : std::uint8_t { kTensors, kOptionalTensors, kInts, kDoubles, kBools, kValues };
    Kind kind = Kind::kValues;
    c10::TypePtr element;
    std::vector<Operand> items;
  };
  enum class Code : std::uint8_t {
    kCall,
    kScalar,
    kSize,
    kItem,
    kGradMode,
    kAutocast,
    kLeave,
    kLayer
  };
  struct Step {
    Code code = Code::kCall;
    ScalarOp scalar = ScalarOp::kAdd;
    std::optional<c10::OperatorHandle> op;
    int first_operand = 0;
    int num_operands = 0;
    int first_output = 0;
    int num_outputs = 0;
    std::int64_t number = 0;  // dimension, position, or of layers_
    GradMode grad_mode;
    Autocast autocast;
  };
  class Builder;

  void execute(const Step& step, ModeScopes& scopes);
  void call(const Step& step);
  void compute(const Step& step);
  c10::IValue take(const Operand& operand);
  c10::IValue take_list(const List& list);
  void write(const Step& step, c10::IValue value);
  [[noreturn]] void rethrow(std::size_t step) const;
  void clear() noexcept;

  int num_inputs_ = 0;
  int num_parameters_ = 0;
  int num_registers_ = 0;
  std::vector<Step> steps_;
  std::vector<std::string> origins_;  // by step
  std::vector<Operand> operands_;
  std::vector<int> outputs_of_steps_;
  std::vector<List> lists_;
  std::vector<LayerPlaces> layers_;
  std::vector<Operand> outputs_;
  std::vector<c10::IValue> values_;  // by register
  std::vector<c10::IValue> stack_;
};

}  // namespace pipert
