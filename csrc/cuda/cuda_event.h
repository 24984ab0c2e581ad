// CudaEvent: a point on a stream, for order alone. Owned.
#pragma once

#include "cuda/cuda_api.h"

namespace pipert {

class CudaEvent {
 public:
  CudaEvent() : event_(cuda::create_event()) {}
  ~CudaEvent() {
    try {
      cuda::destroy_event(event_);
    } catch (const CudaError&) {  // the context is gone, and the event with it
    }
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  cuda::Event get() const { return event_; }

 private:
  cuda::Event event_;
};

}  // namespace pipert
