#include "bindings/python_buffers.h"

#include <ATen/ops/equal.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

namespace py = pybind11;

namespace pipert {
namespace {

// Up to here a copy costs less than to find out whether it is needed.
constexpr std::size_t kSmallBytes = 64 * 1024;

const at::Tensor& tensor_of(const py::handle& value) { return THPVariable_Unpack(value.ptr()); }

bool is_small(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && tensor.nbytes() <= kSmallBytes;
}

// Writes without a trace: the alias has a version counter of its own.
void write(const at::Tensor& to, const at::Tensor& from) { to.variable_data().copy_(from); }

at::Tensor copy_of(const at::Tensor& tensor) { return tensor.variable_data().clone(); }

std::uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<std::uint32_t>(tensor._version());
}

}  // namespace

std::vector<py::dict> ModuleBuffers::find_owners() const {
  std::vector<py::dict> owners;
  for (const py::object& root : roots_) {
    if (!py::hasattr(root, "_buffers") || !py::hasattr(root, "modules")) continue;
    for (const py::handle module : root.attr("modules")()) {
      auto buffers = py::reinterpret_borrow<py::dict>(module.attr("_buffers"));
      if (!buffers.empty()) owners.push_back(std::move(buffers));
    }
  }
  return owners;
}

ModuleBuffers::Snapshot ModuleBuffers::save() {
  if (!owners_.has_value()) owners_ = find_owners();
  Snapshot snapshot;
  for (const py::dict& owner : *owners_) {
    for (const auto& [name, value] : owner) {
      if (!THPVariable_Check(value.ptr())) continue;
      const at::Tensor& tensor = tensor_of(value);
      Entry entry{
          owner, py::str(name), py::reinterpret_borrow<py::object>(value), {}, version_of(tensor)};
      const Place place(owner.ptr(), entry.name);
      const bool is_copied =
          is_small(tensor) || changing_.contains(place) || !seen_.contains(place);
      if (is_copied) entry.content = copy_of(tensor);
      snapshot.push_back(std::move(entry));
    }
  }
  return snapshot;
}

bool ModuleBuffers::settle(Snapshot& snapshot) {
  bool is_whole = true;
  for (Entry& entry : snapshot) {
    const at::Tensor& tensor = tensor_of(entry.standing);
    if (is_small(tensor)) continue;
    const Place place(entry.owner.ptr(), entry.name);
    const bool is_new = seen_.insert(place).second;
    if (entry.content.defined()) {
      if (!is_new) continue;
      if (at::equal(entry.content, tensor.variable_data())) {
        entry.content.reset();
      } else {
        changing_.insert(place);
      }
    } else if (version_of(tensor) != entry.version) {
      changing_.insert(place);
      is_whole = false;
    }
  }
  return is_whole;
}

RewoundBuffers::RewoundBuffers(ModuleBuffers::Snapshot snapshot) : rewound_(std::move(snapshot)) {
  now_.reserve(rewound_.size());
  for (const ModuleBuffers::Entry& entry : rewound_) {
    const at::Tensor& tensor = tensor_of(entry.standing);
    ModuleBuffers::Entry now{entry.owner, entry.name, {}, {}, 0};
    if (entry.owner.contains(entry.name)) now.standing = entry.owner[entry.name];
    if (entry.content.defined()) {
      now.content = copy_of(tensor);
      write(tensor, entry.content);
    }
    now_.push_back(std::move(now));
    entry.owner[entry.name] = entry.standing;
  }
}

RewoundBuffers::~RewoundBuffers() {
  for (std::size_t i = 0; i < rewound_.size(); ++i) {
    if (now_[i].content.defined()) write(tensor_of(rewound_[i].standing), now_[i].content);
    if (now_[i].standing) now_[i].owner[now_[i].name] = now_[i].standing;
  }
}

}  // namespace pipert
