// BatchSpec: how a value of a batch is cut into microbatches, as the user says it: a tree that goes
// as deep as he has something to say. REQUIRES the GIL.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/container.h"

namespace pipert {

struct BatchSpec {
  enum class Kind : std::uint8_t {
    kDefault,   // tensors along dimension 0, all else whole
    kCut,       // tensors along `dim`, all else whole
    kWhole,     // into every microbatch as it is
    kCustom,    // by the user's function
    kSequence,  // part by part, by position
    kNamed,     // by key or field; those that aren't named as kDefault
  };

  Kind kind = Kind::kDefault;
  std::string name;  // "args_spec[0]", for errors
  std::int64_t dim = 0;
  pybind11::object cut;                // kCustom: of the value and the number of microbatches
  std::vector<pybind11::object> keys;  // kNamed: of the parts
  std::vector<BatchSpec> parts;
  bool may_lack = false;  // whether the value may have none for some of the parts: see BatchSpecs
};

// Of what `step` takes. Optional arguments may be left out, so `args` and `kwargs` may lack parts.
struct BatchSpecs {
  BatchSpec args;
  BatchSpec kwargs;
  BatchSpec target;
};

// From (args, kwargs, target), each as pipert/batches/specs.py has it: (kind, name, dim, function
// or parts).
BatchSpecs batch_specs(const pybind11::tuple& trees);

// Where a walk through a value stands in its spec.
class SpecPlace {
 public:
  // `spec` must outlive it.
  explicit SpecPlace(const BatchSpec& spec) : node_(&spec), leaf_(&spec) {}

  bool is_whole() const { return leaf_->kind == BatchSpec::Kind::kWhole; }
  bool is_custom() const { return leaf_->kind == BatchSpec::Kind::kCustom; }
  const BatchSpec& leaf() const { return *leaf_; }
  // Whether the spec goes deeper here.
  bool has_parts() const;
  // The dimension along which a tensor is cut. ValueError if it doesn't have that.
  std::int64_t dim(const at::Tensor& tensor, const std::string& what) const;

  // ValueError if the spec goes deeper here, and not as the value does.
  void check_fits(const Container& container, const std::string& what) const;
  // The same for what is no container, or is one that is not cut.
  void check_is_leaf(pybind11::handle value, const std::string& what) const;
  // ValueError if the user asked to have a value cut here that can't be.
  void check_cuttable(pybind11::handle value, const std::string& what) const;
  // The place of an element.
  SpecPlace part(const Container& container, std::size_t index) const;

 private:
  SpecPlace(const BatchSpec* node, const BatchSpec* leaf) : node_(node), leaf_(leaf) {}

  const BatchSpec* node_;  // that stands here; null below a leaf
  const BatchSpec* leaf_;  // what holds here
};

}  // namespace pipert
