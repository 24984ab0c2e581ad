// DeviceTimes: when a rank's lanes came to the instructions of its last passes. On an accelerator
// the host's clock says when work was issued, and no more.
//
// Owned by a rank. Written by the rank's thread, but for begin() and read(): those are the
// caller's, while no pass runs. All events are made when it is made, and kept apart from the marks
// that order lanes: events that take the time are slower.
#pragma once

#include <c10/core/Device.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "device/device_span.h"
#include "device/lane.h"

namespace pipert {

class DeviceTimes {
 public:
  virtual ~DeviceTimes() = default;

  // A pass begins, to be kept at `place`; what was there is forgotten. Waits for the device, once,
  // to compare its clock with the host's.
  virtual void begin(std::size_t place) = 0;
  // The lane comes to, or has passed, what it is given for an instruction. Nothing where the lane
  // is being captured into a graph: such events have no time.
  virtual void start(std::size_t instruction, Lane& lane) = 0;
  virtual void end(std::size_t instruction, Lane& lane) = 0;
  // Of the pass kept at `place`, by instruction. Waits until the device has come to the last one.
  virtual std::vector<DeviceSpan> read(std::size_t place) = 0;
};

// Null where the host's times are all there is: on the CPU, whose work is done when the call
// returns, and on accelerators other than CUDA's.
std::unique_ptr<DeviceTimes> make_device_times(const c10::Device& device, std::size_t num_passes,
                                               std::size_t num_instructions);

}  // namespace pipert
