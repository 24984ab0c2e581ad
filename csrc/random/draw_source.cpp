#include "random/draw_source.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

namespace pipert {
namespace {

constexpr c10::DispatchKey kKey = c10::DispatchKey::BackendSelect;
constexpr c10::DispatchKeySet kBelow(c10::DispatchKeySet::FULL_AFTER, kKey);

thread_local DrawSource* source_of_thread = nullptr;

// The kernel of one operator that takes a generator.
class PutGenerator final : public c10::OperatorKernel {
 public:
  // `from_end`: where the generator stands among the arguments, counted from behind.
  explicit PutGenerator(std::size_t from_end) : from_end_(from_end) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                  torch::jit::Stack* stack) {
    DrawSource* source = source_of_thread;
    if (source != nullptr && keys.highestBackendKey() == c10::BackendComponent::CPUBit) {
      c10::IValue& argument = (*stack)[stack->size() - from_end_];
      if (argument.isNone()) argument = source->generator();
    }
    op.redispatchBoxed(keys & kBelow, stack);
  }

 private:
  std::size_t from_end_;
};

bool is_optional_generator(const c10::TypePtr& type) {
  const auto optional = type->cast<c10::OptionalType>();
  return optional != nullptr && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
}

std::optional<std::size_t> generator_from_end(const c10::FunctionSchema& schema) {
  const auto& arguments = schema.arguments();
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (is_optional_generator(arguments[i].type())) return arguments.size() - i;
  }
  return std::nullopt;
}

torch::Library make_library(const std::string& name_space) {
  const auto kind = torch::Library::IMPL;
  return {kind, name_space, kKey, __FILE__, __LINE__};
}

}  // namespace

DrawSource* current_draw_source() { return source_of_thread; }

DrawGuard::DrawGuard(DrawSource& source) : previous_(std::exchange(source_of_thread, &source)) {}

DrawGuard::~DrawGuard() { source_of_thread = previous_; }

void intercept_draws() {
  // Never taken back: what is registered stays as long as the process.
  static auto& libraries = *new std::map<std::string, torch::Library>();
  static auto& known = *new std::set<std::string>();
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    if (!op.has_value() || op->hasKernelForDispatchKey(kKey)) continue;
    const auto from_end = generator_from_end(op->schema());
    if (!from_end.has_value() || !known.insert(c10::toString(name)).second) continue;
    const std::string name_space(name.getNamespace().value_or("aten"));
    auto library = libraries.find(name_space);
    if (library == libraries.end())
      library = libraries.emplace(name_space, make_library(name_space)).first;
    library->second.impl(
        c10::toString(name).c_str(),
        torch::CppFunction::makeFromBoxedFunctor(std::make_unique<PutGenerator>(*from_end)));
  }
}

}  // namespace pipert
