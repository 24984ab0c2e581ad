// ModuleBuffers: the buffers of a module, so that a forward that runs twice changes them once.
//
// Batch norm's statistics, a power iteration, a counter: their forward changes buffers and may read
// them. A second run must find them as the first one did, and leave no trace. All of it REQUIRES
// the GIL.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace pipert {

class ModuleBuffers {
 public:
  struct Entry {
    pybind11::dict owner;  // a module's buffers, by name
    pybind11::str name;
    pybind11::object standing;  // what stood there: a tensor
    at::Tensor content;         // a copy; undefined: large, and not known to change
    std::uint32_t version = 0;
  };
  using Snapshot = std::vector<Entry>;

  // Of these modules, and of all in them; other objects are skipped.
  explicit ModuleBuffers(std::vector<pybind11::object> roots) : roots_(std::move(roots)) {}

  // Before the first run. Copies small buffers, and large ones that are known to change or were
  // never looked at.
  Snapshot save();
  // After it: drops copies of large buffers that didn't change. False if one did of which there is
  // no copy: there will be from now on.
  bool settle(Snapshot& snapshot);
  // Modules may have been put in or taken out.
  void forget_modules() { owners_.reset(); }

 private:
  using Place =
      std::pair<PyObject*, std::string>;  // a dict of buffers, owned by roots_, and a name

  std::vector<pybind11::dict> find_owners() const;

  std::vector<pybind11::object> roots_;
  std::optional<std::vector<pybind11::dict>> owners_;  // nothing: to be looked for
  std::set<Place> seen_;                               // large buffers that were looked at
  std::set<Place> changing_;                           // those of them that change
};

// While it lives, the buffers are as in the snapshot; what the code inside does to them is undone.
// No version counter moves, since graphs of other microbatches may have saved the buffers.
class RewoundBuffers {
 public:
  explicit RewoundBuffers(ModuleBuffers::Snapshot snapshot);
  ~RewoundBuffers();
  RewoundBuffers(const RewoundBuffers&) = delete;
  RewoundBuffers& operator=(const RewoundBuffers&) = delete;

 private:
  ModuleBuffers::Snapshot rewound_;
  ModuleBuffers::Snapshot now_;
};

}  // namespace pipert
