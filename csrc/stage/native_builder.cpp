// How a NativeProgram becomes what NativeGraph runs.
#include <ATen/core/function_schema.h>
#include <ATen/core/jit_type.h>

#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "stage/native_graph.h"

namespace pipert {

class NativeGraph::Builder {
 public:
  Builder(NativeGraph& graph, const NativeProgram& program)
      : graph_(graph), last_use_(as_index(program.num_registers), -1) {}

  void build(NativeProgram program) {
    graph_.values_.resize(last_use_.size());
    find_last_uses(program);
    written_.assign(last_use_.size(), false);
    for (int i = 0; i < program.num_inputs + program.num_parameters; ++i)
      written_[as_index(i)] = true;
    for (NativeInstruction& instruction : program.instructions) {
      add(std::move(instruction));
      ++at_;
    }
    for (NativeArgument& output : program.outputs)
      graph_.outputs_.push_back(operand(std::move(output), c10::TensorType::get()));
    // A register that the last reader moves out must be read in front of it by copying.
    keep_first_reads();
  }

 private:
  void find_last_uses(const NativeProgram& program) {
    int at = 0;
    const auto note = [&](const auto& self, const NativeArgument& argument) -> void {
      if (argument.kind == NativeArgument::Kind::kRegister ||
          argument.kind == NativeArgument::Kind::kScalar) {
        if (argument.index < 0 || as_index(argument.index) >= last_use_.size())
          throw ValueError(concat("no register ", argument.index, " of ", last_use_.size()));
        last_use_[as_index(argument.index)] = at;
      }
      for (const NativeArgument& item : argument.items) self(self, item);
    };
    for (const NativeInstruction& instruction : program.instructions) {
      if (const auto* call = std::get_if<CallOperator>(&instruction.what))
        for (const NativeArgument& argument : call->arguments) note(note, argument);
      if (const auto* scalar = std::get_if<ComputeScalar>(&instruction.what))
        for (const NativeArgument& argument : scalar->arguments) note(note, argument);
      if (const auto* size = std::get_if<TakeSize>(&instruction.what)) note(note, size->tensor);
      if (const auto* item = std::get_if<TakeItem>(&instruction.what)) note(note, item->list);
      ++at;
    }
    for (const NativeArgument& output : program.outputs) note(note, output);
    first_temporary_ = program.num_inputs + program.num_parameters;
    num_inputs_ = program.num_inputs;
  }

  void add(NativeInstruction instruction) {
    Step step;
    step.first_operand = static_cast<int>(graph_.operands_.size());
    std::visit([&](auto& what) { fill(step, what); }, instruction.what);
    step.num_operands = static_cast<int>(graph_.operands_.size()) - step.first_operand;
    step.first_output = static_cast<int>(graph_.outputs_of_steps_.size());
    step.num_outputs = static_cast<int>(instruction.outputs.size());
    for (const int output : instruction.outputs) {
      if (output >= 0) {
        if (as_index(output) >= written_.size())
          throw ValueError(concat("no register ", output, " of ", written_.size()));
        written_[as_index(output)] = true;
      }
      // What nobody reads isn't kept.
      graph_.outputs_of_steps_.push_back(output >= 0 && last_use_[as_index(output)] < 0 ? -1
                                                                                        : output);
    }
    graph_.origins_.push_back(std::move(instruction.origin));
    graph_.steps_.push_back(std::move(step));
  }

  void fill(Step& step, CallOperator& what) {
    const auto& schema = what.op.schema();
    if (what.arguments.size() != schema.arguments().size())
      throw ValueError(concat(schema.name(), " takes ", schema.arguments().size(),
                              " arguments, got ", what.arguments.size()));
    step.code = Code::kCall;
    step.op = what.op;
    for (std::size_t i = 0; i < what.arguments.size(); ++i)
      push(std::move(what.arguments[i]), schema.arguments()[i].type());
  }

  void fill(Step& step, ComputeScalar& what) {
    if (what.arguments.size() != as_index(num_operands(what.op)))
      throw ValueError(concat("an operation on sizes takes ", num_operands(what.op),
                              " operands, got ", what.arguments.size()));
    step.code = Code::kScalar;
    step.scalar = what.op;
    for (NativeArgument& argument : what.arguments)
      push(std::move(argument), c10::NumberType::get());
  }

  void fill(Step& step, TakeSize& what) {
    step.code = Code::kSize;
    step.number = what.dimension;
    push(std::move(what.tensor), c10::TensorType::get());
  }

  void fill(Step& step, TakeItem& what) {
    step.code = Code::kItem;
    step.number = what.position;
    push(std::move(what.list), c10::AnyType::get());
  }

  void fill(Step& step, GradMode& what) {
    step.code = Code::kGradMode;
    step.grad_mode = what;
  }

  void fill(Step& step, Autocast& what) {
    step.code = Code::kAutocast;
    step.autocast = what;
  }

  void fill(Step& step, LeaveMode&) { step.code = Code::kLeave; }

  void fill(Step& step, EnterLayer& what) {
    step.code = Code::kLayer;
    step.number = static_cast<std::int64_t>(graph_.layers_.size());
    graph_.layers_.push_back(std::move(what.places));
  }

  void push(NativeArgument argument, const c10::TypePtr& type) {
    const Operand made = operand(std::move(argument), type);
    graph_.operands_.push_back(made);
  }

  Operand operand(NativeArgument argument, const c10::TypePtr& schema_type) {
    c10::TypePtr type = schema_type;
    if (const auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
    switch (argument.kind) {
      case NativeArgument::Kind::kConstant:
        graph_.values_.push_back(std::move(argument.constant));
        return {Operand::Kind::kCopy, static_cast<int>(graph_.values_.size()) - 1};
      case NativeArgument::Kind::kList:
        return list(std::move(argument), type);
      case NativeArgument::Kind::kScalar:
        check_written(argument.index);
        if (type->kind() == c10::TypeKind::TensorType)
          return {Operand::Kind::kToTensor, argument.index};
        if (type->kind() == c10::TypeKind::FloatType)
          return {Operand::Kind::kToDouble, argument.index};
        return {Operand::Kind::kCopy, argument.index};
      case NativeArgument::Kind::kRegister:
        check_written(argument.index);
        return {is_last_use(argument.index) ? Operand::Kind::kTake : Operand::Kind::kCopy,
                argument.index};
    }
    throw InternalError("an argument of no known kind");
  }

  Operand list(NativeArgument argument, const c10::TypePtr& type) {
    const auto list_type = type->cast<c10::ListType>();
    if (list_type == nullptr) throw ValueError(concat("expected ", type->str(), ", got a list"));
    List list;
    list.element = list_type->getElementType();
    list.kind = list_kind(list.element);
    for (NativeArgument& item : argument.items)
      list.items.push_back(operand(std::move(item), list.element));
    graph_.lists_.push_back(std::move(list));
    return {Operand::Kind::kList, static_cast<int>(graph_.lists_.size()) - 1};
  }

  static List::Kind list_kind(const c10::TypePtr& element) {
    if (element->kind() == c10::TypeKind::TensorType) return List::Kind::kTensors;
    if (element->kind() == c10::TypeKind::OptionalType) return List::Kind::kOptionalTensors;
    if (element->kind() == c10::TypeKind::IntType || element->kind() == c10::TypeKind::SymIntType)
      return List::Kind::kInts;
    if (element->kind() == c10::TypeKind::FloatType) return List::Kind::kDoubles;
    if (element->kind() == c10::TypeKind::BoolType) return List::Kind::kBools;
    return List::Kind::kValues;
  }

  void check_written(int index) const {
    if (!written_[as_index(index)])
      throw ValueError(concat("register ", index, " is read before it is written"));
  }

  // Parameters stay.
  bool is_last_use(int index) const {
    return last_use_[as_index(index)] == at_ && (index < num_inputs_ || index >= first_temporary_);
  }

  void keep_first_reads() {
    const auto keep = [&](std::vector<Operand*> reads) {
      std::vector<bool> seen(last_use_.size(), false);
      for (auto read = reads.rbegin(); read != reads.rend(); ++read) {
        if ((*read)->kind != Operand::Kind::kTake) continue;
        if (seen[as_index((*read)->index)]) (*read)->kind = Operand::Kind::kCopy;
        seen[as_index((*read)->index)] = true;
      }
    };
    std::vector<Operand*> reads;
    const auto collect = [&](const auto& self, Operand& operand) -> void {
      if (operand.kind != Operand::Kind::kList) return reads.push_back(&operand);
      for (Operand& item : graph_.lists_[as_index(operand.index)].items) self(self, item);
    };
    for (const Step& step : graph_.steps_) {
      reads.clear();
      for (int i = 0; i < step.num_operands; ++i)
        collect(collect, graph_.operands_[as_index(step.first_operand + i)]);
      keep(reads);
    }
    reads.clear();
    for (Operand& output : graph_.outputs_) collect(collect, output);
    keep(reads);
  }

  NativeGraph& graph_;
  std::vector<int> last_use_;  // by register, the instruction; -1: none
  std::vector<bool> written_;
  int at_ = 0;  // the instruction at hand
  int num_inputs_ = 0;
  int first_temporary_ = 0;
};

NativeGraph::NativeGraph(NativeProgram program)
    : num_inputs_(program.num_inputs),
      num_parameters_(program.num_parameters),
      num_registers_(program.num_registers) {
  if (num_inputs_ < 0 || num_parameters_ < 0 || num_registers_ < num_inputs_ + num_parameters_)
    throw ValueError(concat("a program of ", num_inputs_, " inputs and ", num_parameters_,
                            " parameters can't have ", num_registers_, " registers"));
  Builder(*this, program).build(std::move(program));
}

}  // namespace pipert
