// DeviceGraph: what a thread gives to its lane, recorded once and launched at will.
//
// GraphPool: where graphs that are launched in the order in which they were recorded share their
// memory.
//
// Both are used by the rank's thread alone, with the lane current on it. A graph may die on another
// thread, while no pass runs.
#pragma once

#include <c10/core/Device.h>

#include <memory>

namespace pipert {

class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;

  // What this thread gives to its lane from now on is recorded, and not done. What it allocates
  // lies in the pool: memory that dies before the next graph is begun is there for that one.
  virtual void begin() = 0;
  // Throws if something was done that can't be recorded; then all is as after abandon().
  virtual void end() = 0;
  // Instead of end(): nothing is kept.
  virtual void abandon() noexcept = 0;
  // Gives the lane all that was recorded. Doesn't wait. REQUIRES end().
  virtual void launch() = 0;
};

class GraphPool {
 public:
  virtual ~GraphPool() = default;
  virtual std::unique_ptr<DeviceGraph> make() = 0;
};

// Null where there are no graphs: on all devices but CUDA's.
std::unique_ptr<GraphPool> make_graph_pool(const c10::Device& device);

}  // namespace pipert
