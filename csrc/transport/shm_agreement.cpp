#include "transport/shm_agreement.h"

#include <utility>

namespace pipert {
namespace {

class ShmAgreement final : public Agreement {
 public:
  explicit ShmAgreement(std::unique_ptr<Meeting> meeting) : meeting_(std::move(meeting)) {}

  bool agree(std::vector<double>& values) override { return meeting_->meet(values); }
  int awaited_rank() const override { return meeting_->awaited_rank(); }
  void abort() noexcept override { meeting_->abort(); }
  bool reset() noexcept override { return false; }

 private:
  std::unique_ptr<Meeting> meeting_;
};

}  // namespace

std::unique_ptr<Agreement> make_shm_agreement(std::unique_ptr<Meeting> meeting) {
  return std::make_unique<ShmAgreement>(std::move(meeting));
}

}  // namespace pipert
