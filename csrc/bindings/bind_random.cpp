// Random streams, and the microbatch that a thread is at.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <atomic>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/python_context.h"
#include "random/rank_generator.h"
#include "stage/microbatch_scope.h"

namespace py = pybind11;

namespace pipert {
namespace {

// Before a layer's forward: its draws are the layer's.
class LayerHook {
 public:
  LayerHook(std::int64_t owner, std::vector<std::int64_t> layers)
      : places_{owner, std::move(layers)} {}

  void operator()(const py::object& /*module*/, const py::args& /*args*/) const {
    pipert::enter_layer(places_);
  }
  std::int64_t owner() const { return places_.owner; }
  const std::vector<std::int64_t>& layers() const { return places_.layers; }

 private:
  LayerPlaces places_;
};

// Before the forward of a layer that asks for its microbatch.
class ContextHook {
 public:
  explicit ContextHook(std::vector<py::str> keywords) : keywords_(std::move(keywords)) {}

  py::object operator()(const py::object& /*module*/, const py::object& args,
                        const py::dict& kwargs) const {
    const RunContext* context = MicrobatchScope::current();
    if (context == nullptr) return py::none();
    const py::dict values = context_values(*context);
    auto all = py::reinterpret_steal<py::dict>(PyDict_Copy(kwargs.ptr()));
    for (const py::str& keyword : keywords_) {
      if (!all.contains(keyword)) all[keyword] = values[keyword];
    }
    return py::make_tuple(args, all);
  }
  const std::vector<py::str>& keywords() const { return keywords_; }

 private:
  std::vector<py::str> keywords_;
};

// The streams of one microbatch, for code outside of a pipeline. Entered and left on one thread.
class KeyedScope {
 public:
  KeyedScope(std::uint64_t seed, std::int64_t owner, const std::string& device, StreamKey key)
      : seed_(seed), owner_(owner), device_(device), key_(key) {}

  void enter() {
    if (generator_ != nullptr) throw ValueError("the context is entered already");
    intercept_draws();
    generator_ =
        std::make_unique<RankGenerator>(std::make_shared<PassSeed>(seed_), device_, owner_);
    generator_->select(key_);
  }
  void exit() {
    if (RankGenerator::current() != generator_.get())
      throw ValueError("contexts must be left on the thread that entered them, the last one first");
    generator_.reset();
  }

 private:
  std::uint64_t seed_;
  std::int64_t owner_;
  c10::Device device_;
  StreamKey key_;
  std::unique_ptr<RankGenerator> generator_;
};

// What a RunContext says, kept beyond it.
struct CurrentMicrobatch {
  RunContext context;
};

// Of the calling thread. An export looks whether it moves: outside of a stage the answer is None.
thread_local std::int64_t num_questions = 0;

std::optional<CurrentMicrobatch> current_microbatch() {
  ++num_questions;
  const RunContext* context = MicrobatchScope::current();
  if (context == nullptr) return std::nullopt;
  return CurrentMicrobatch{*context};
}

std::optional<at::Generator> thread_generator() {
  DrawSource* source = current_draw_source();
  if (source == nullptr) return std::nullopt;
  return source->generator();
}

void bind_current_microbatch(py::module_& module) {
  py::class_<CurrentMicrobatch>(
      module, "CurrentMicrobatch",
      "The microbatch that a thread runs a stage for. What `current_microbatch` returns.")
      .def_property_readonly("index",
                             [](const CurrentMicrobatch& self) { return self.context.microbatch; })
      .def_property_readonly(
          "num_microbatches",
          [](const CurrentMicrobatch& self) { return self.context.num_microbatches; })
      .def_property_readonly("stage",
                             [](const CurrentMicrobatch& self) { return self.context.turn.stage; })
      .def_property_readonly("step",
                             [](const CurrentMicrobatch& self) { return self.context.pass.step; })
      .def_property_readonly(
          "is_first", [](const CurrentMicrobatch& self) { return self.context.turn.is_first; })
      .def_property_readonly(
          "is_last", [](const CurrentMicrobatch& self) { return self.context.turn.is_last; })
      .def_property_readonly(
          "is_recomputing",
          [](const CurrentMicrobatch& self) { return self.context.is_recomputing; })
      .def_property_readonly(
          "training", [](const CurrentMicrobatch& self) { return self.context.pass.training; })
      .def("__repr__", [](const CurrentMicrobatch& self) {
        return concat("<CurrentMicrobatch ", self.context.microbatch, " of ",
                      self.context.num_microbatches, " on stage ", self.context.turn.stage, ">");
      });
  module.def("current_microbatch", &current_microbatch, R"(What the calling thread is doing.

Any code that runs in a stage may ask: its forward, the loss function, a recomputation, hooks of
backward that run on the rank's thread.

Returns:
    The microbatch's `index` and `num_microbatches`, its `stage`, the `step` (training passes before
    this one), whether the stage's forwards begin with it (`is_first`) or end (`is_last`), whether
    the forward `is_recomputing`, and whether the pass is `training`. None outside of a stage.)");
}

}  // namespace

void bind_random(py::module_& module) {
  bind_current_microbatch(module);
  py::class_<LayerHook>(module, "LayerHook",
                        "Forward pre-hook of a layer whose draws are its own. Not for users.")
      .def(py::init<std::int64_t, std::vector<std::int64_t>>(), py::arg("owner"), py::arg("layers"))
      .def("__call__", &LayerHook::operator())
      .def_property_readonly("owner", &LayerHook::owner)
      .def_property_readonly("layers", &LayerHook::layers)
      // A copy of the module is nobody's layer.
      .def(
          py::pickle([](const LayerHook& self) { return self.layers(); },
                     [](const std::vector<std::int64_t>& layers) { return LayerHook(0, layers); }));
  py::class_<ContextHook>(
      module, "ContextHook",
      "Forward pre-hook of a layer that asks for its microbatch. Not for users.")
      .def(py::init<std::vector<py::str>>(), py::arg("keywords"))
      .def("__call__", &ContextHook::operator())
      .def(py::pickle(
          [](const ContextHook& self) { return self.keywords(); },
          [](std::vector<py::str> keywords) { return ContextHook(std::move(keywords)); }));
  py::class_<KeyedScope>(module, "KeyedScope", "What pipert.KeyedRandom enters; not for users.")
      .def(py::init([](std::uint64_t seed, std::int64_t owner, const std::string& device,
                       bool training, std::int64_t step, Microbatch microbatch) {
             const StreamKind kind = training ? StreamKind::kTraining : StreamKind::kEvaluation;
             return KeyedScope(seed, owner, device, {kind, step, 0, microbatch});
           }),
           py::kw_only(), py::arg("seed"), py::arg("owner"), py::arg("device"), py::arg("training"),
           py::arg("step"), py::arg("microbatch"))
      .def("enter", &KeyedScope::enter)
      .def("exit", &KeyedScope::exit);
  module.def("num_microbatch_questions", [] { return num_questions; });
  module.def("enter_loss", &enter_loss);
  module.def("thread_generator", &thread_generator);
}

}  // namespace pipert
