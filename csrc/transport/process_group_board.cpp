#include "transport/process_group_board.h"

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <utility>

namespace pipert {
namespace {

constexpr const char* kKey = "failure";

class StoreBoard final : public FailureBoard {
 public:
  explicit StoreBoard(c10::intrusive_ptr<c10d::Store> store) : store_(std::move(store)) {}

  void publish(const std::string& text) noexcept override {
    try {
      const std::vector<std::uint8_t> value(text.begin(), text.end());
      store_->compareSet(kKey, {}, value);
    } catch (...) {  // see FailureBoard
    }
  }

  std::optional<std::string> poll() noexcept override {
    try {
      if (!store_->check({kKey})) return std::nullopt;
      const auto value = store_->get(kKey);
      return std::string(value.begin(), value.end());
    } catch (...) {
      return std::nullopt;
    }
  }

 private:
  c10::intrusive_ptr<c10d::Store> store_;
};

}  // namespace

std::unique_ptr<FailureBoard> make_process_group_board(
    const c10::intrusive_ptr<c10d::Store>& store) {
  return std::make_unique<StoreBoard>(store->clone());
}

}  // namespace pipert
