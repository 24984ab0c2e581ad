#include "autograd/main_gradients.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <utility>

namespace pipert {
namespace {

using torch::autograd::PostAccumulateGradHook;

// A parameter has one place for such a hook, and Python's hooks are all behind one that stands
// there: so this one takes the place of what it finds, and calls that first.
class AddToMain final : public PostAccumulateGradHook {
 public:
  AddToMain(std::unique_ptr<PostAccumulateGradHook> inner, at::Tensor main)
      : inner_(std::move(inner)), main_(std::move(main)) {}

  void operator()(const torch::autograd::Variable& parameter) override {
    if (inner_ != nullptr) (*inner_)(parameter);
    add_to_main(parameter, main_);
  }

  std::unique_ptr<PostAccumulateGradHook> take_inner() { return std::move(inner_); }

 private:
  std::unique_ptr<PostAccumulateGradHook> inner_;
  at::Tensor main_;
};

// A float32 weight's optimizer may have been given the main gradient itself. Tensors that wrap
// others, as those of fully_shard do, have no data of their own.
bool is_main(const at::Tensor& gradient, const at::Tensor& main) {
  if (gradient.is_same(main)) return true;
  const void* data = gradient.has_storage() ? gradient.const_data_ptr() : nullptr;
  return data != nullptr && main.has_storage() && data == main.const_data_ptr();
}

}  // namespace

void add_to_main(const at::Tensor& parameter, const at::Tensor& main) {
  at::Tensor& gradient = parameter.mutable_grad();
  if (!gradient.defined()) return;
  if (is_main(gradient, main)) return;
  const c10::AutoGradMode no_grad(false);
  main.add_(gradient);
  gradient.reset();
}

MainGradients::MainGradients(std::vector<Entry> entries) : entries_(std::move(entries)) {
  sweep();
  for (const Entry& entry : entries_) {
    if (entry.is_shared) continue;
    auto& place = torch::autograd::impl::post_acc_grad_hooks(entry.parameter);
    torch::autograd::impl::set_post_acc_grad_hooks(
        entry.parameter, std::make_unique<AddToMain>(std::move(place), entry.main));
  }
}

MainGradients::~MainGradients() {
  for (const Entry& entry : entries_) {
    auto& place = torch::autograd::impl::post_acc_grad_hooks(entry.parameter);
    auto* own = dynamic_cast<AddToMain*>(place.get());
    if (own != nullptr) place = own->take_inner();
  }
}

void MainGradients::sweep() {
  for (const Entry& entry : entries_) add_to_main(entry.parameter, entry.main);
}

}  // namespace pipert
