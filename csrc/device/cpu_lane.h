// The lane of the CPU: work is done when the call returns, so there is nothing to order.
#pragma once

#include "device/lane.h"

namespace pipert {

class CpuLane final : public Lane {
 public:
  bool is_asynchronous() const override { return false; }
  std::unique_ptr<Mark> make_mark() const override { return std::make_unique<Mark>(); }
  void record(Mark&) override {}
  void wait(const Mark&) override {}
  void adopt(const at::Tensor&) override {}
  std::unique_ptr<CurrentLane> make_current() override { return std::make_unique<CurrentLane>(); }
};

}  // namespace pipert
