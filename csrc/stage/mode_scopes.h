// ModeScopes: the grad modes and autocasts that a native stage enters and leaves as its module
// does.
//
// Lives on the stack of one run; leaves what is still entered when it goes.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <vector>

namespace pipert {

// What `with torch.set_grad_enabled(...)` and `with torch.autocast(...)` set.
struct GradMode {
  bool enabled = true;
};
struct Autocast {
  c10::DeviceType device = c10::kCPU;
  c10::ScalarType dtype = c10::ScalarType::BFloat16;
  bool enabled = true;
  bool cache = true;
};

class ModeScopes {
 public:
  ModeScopes() = default;
  ~ModeScopes();
  ModeScopes(const ModeScopes&) = delete;
  ModeScopes& operator=(const ModeScopes&) = delete;

  void enter(const GradMode& mode);
  void enter(const Autocast& mode);
  // The one entered last. REQUIRES that there is one.
  void leave();

 private:
  struct Entered {
    bool is_autocast = false;
    bool grad_enabled = true;  // before it
    Autocast autocast;         // before it
  };
  std::vector<Entered> entered_;
};

}  // namespace pipert
