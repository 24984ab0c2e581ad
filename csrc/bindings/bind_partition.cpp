// search_partition with its PartitionResult, and balanced_cuts with what it takes and returns.

#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/search_arguments.h"
#include "search/balance.h"
#include "search/partition.h"
#include "search/step_balance.h"

namespace py = pybind11;

namespace pipert {
namespace {

int num_layers_of(std::optional<int> num_layers, const Costs& layers, const MemoryCap& cap) {
  if (!num_layers) num_layers = longest_of(layers, cap);
  if (!num_layers) {
    throw ValueError(
        "layers must have a cost for each layer, got one number for all: give num_layers");
  }
  if (*num_layers < 1) throw ValueError(concat("num_layers must be at least 1, got ", *num_layers));
  return *num_layers;
}

// By default one stage on each rank, and a V of two if there are layers for them.
std::vector<Placement> to_placements(const std::optional<PlacementChoices>& choices, int num_ranks,
                                     std::optional<int> num_stages, int num_layers) {
  if (choices || num_stages) return placements_of(to_choices(choices), num_ranks, num_stages);
  std::vector<Placement> placements = placements_of({"loop"}, num_ranks, num_ranks);
  if (num_ranks > 1 && num_layers / 2 >= num_ranks) {
    placements.push_back(Placement::v_shaped(num_ranks, 2 * num_ranks));
  }
  return placements;
}

PartitionResult search_layers(const Costs& layers, int num_ranks, int num_microbatches,
                              const std::optional<OneOrMany>& memory_limit,
                              const OneOrMany& activation_size, const std::string& objective,
                              const std::optional<PlacementChoices>& placements,
                              std::optional<int> num_stages, std::optional<int> num_layers,
                              std::optional<double> time_limit,
                              std::optional<std::int64_t> iterations, std::uint64_t seed) {
  const MemoryCap cap = make_cap(memory_limit, activation_size, layers);
  PartitionRequest request;
  request.num_layers = num_layers_of(num_layers, layers, cap);
  request.search.costs = layers;
  request.search.num_microbatches = num_microbatches;
  request.search.cap = cap;
  request.search.objective = to_objective(objective);
  request.search.placements = to_placements(placements, num_ranks, num_stages, request.num_layers);
  request.search.time_limit = time_limit;
  request.search.iterations = iterations;
  request.search.seed = seed;
  const py::gil_scoped_release released;
  return search_partition(request, look_for_signals);
}

using MeasureOrNumbers = std::variant<std::vector<double>, Measure>;

Measure to_measure(const MeasureOrNumbers& given) {
  if (const auto* measure = std::get_if<Measure>(&given)) return *measure;
  return Measure(std::get<std::vector<double>>(given));
}

Balance cuts_of(const MeasureOrNumbers& work, const Placement& placement,
                const std::optional<MeasureOrNumbers>& held, const std::optional<OneOrMany>& limit,
                const std::optional<Schedule>& schedule, const std::optional<Costs>& costs) {
  const BalanceRequest request{.work = to_measure(work),
                               .held = to_measure(held.value_or(work)),
                               .limit = to_vector(limit),
                               .placement = placement};
  if (!schedule) return balance(request);
  if (!costs)
    throw ValueError("a schedule is simulated under costs of layers: expected them, got None");
  return step_balance(request, *costs, *schedule);
}

void bind_balance(py::module_& module) {
  py::class_<Measure>(module, "Measure",
                      "What neighbouring layers take together as a stage: time, or memory.")
      .def(py::init<std::vector<double>, const std::vector<double>&, std::vector<double>>(),
           py::arg("once"), py::arg("each") = std::vector<double>(),
           py::arg("times") = std::vector<double>(), R"(
Args:
    once: By layer, what it takes whatever stage it is in.
    each: By layer, what it takes as often as its stage says.
    times: By stage, how often.)");
  py::class_<Balance>(module, "Balance", "What balanced_cuts found.")
      .def_readonly("cuts", &Balance::cuts, "By stage: its number of layers.")
      .def_readonly("longest", &Balance::longest, "The work of the rank that has most.")
      .def_readonly("bound", &Balance::bound, "No cuts have a shorter longest rank.")
      .def_property_readonly(
          "gap",
          [](const Balance& self) {
            return self.bound > 0.0 ? self.longest / self.bound - 1.0 : 0.0;
          },
          "How much longer than the bound it is, as a share; 0: the best.")
      .def_readonly("work", &Balance::work, "By rank.")
      .def_readonly("held", &Balance::held, "By rank.");
  module.def("balanced_cuts", &cuts_of, py::arg("work"), py::arg("placement"), py::kw_only(),
             py::arg("held") = py::none(), py::arg("limit") = py::none(),
             py::arg("schedule") = py::none(), py::arg("costs") = py::none(),
             py::call_guard<py::gil_scoped_release>(),
             R"(Cuts layers into stages so that the rank with the most work has as little as can be.

Exact for one stage a rank, a V, and two copies of the model that run opposite ways. For others the
best of several starts after moving single layers; `gap` tells how far it may be from the best.

Args:
    work: A Measure, or a number for each layer.
    placement: Which rank owns which stage. The stages of its first copy are cut.
    held: What `limit` is about, likewise; None: the work.
    limit: What a rank's stages may hold together; one number, or one for each rank; None: no limit.
    schedule: Of these cuts, and of some with a layer moved, those under which its step ends soonest.
    costs: Of the layers, to simulate it.

Raises:
    ValueError: Fewer layers than stages, numbers that don't fit each other, or a limit that no cuts
        keep, with the least that would do.)");
}

}  // namespace

// REQUIRES bind_search.
void bind_partition(py::module_& module) {
  bind_balance(module);
  py::class_<PartitionResult>(module, "PartitionResult", "What search_partition found.")
      .def_readonly("balance", &PartitionResult::cuts,
                    "By stage: its number of layers, as pipert.split(balance=) takes it.")
      .def_readonly("costs", &PartitionResult::costs, "Of the stages.")
      .def_readonly("search", &PartitionResult::search, "The SearchResult of these stages.")
      .def_property_readonly("schedule",
                             [](const PartitionResult& self) { return self.search.schedule; })
      .def_property_readonly(
          "value", [](const PartitionResult& self) { return self.search.value; },
          "The objective: the makespan or longest span.")
      .def_readonly("bound", &PartitionResult::bound,
                    "No partition over the same placements has a smaller value.")
      .def_readonly("even_balance", &PartitionResult::even,
                    "Stages of equally many layers, to compare with.")
      .def_readonly("even_value", &PartitionResult::even_value,
                    "The best that a short search found for them; inf if they don't fit memory.")
      .def("__repr__", [](const PartitionResult& self) {
        return concat("<PartitionResult: ", self.search.value, " with ", self.cuts.size(),
                      " stages, even stages ", self.even_value, ", bound ", self.bound, ">");
      });
  module.def("search_partition", &search_layers, py::arg("layers"), py::arg("num_ranks"),
             py::arg("num_microbatches"), py::arg("memory_limit") = py::none(), py::kw_only(),
             py::arg("activation_size") = 1.0, py::arg("objective") = "makespan",
             py::arg("placements") = py::none(), py::arg("num_stages") = py::none(),
             py::arg("num_layers") = py::none(), py::arg("time_limit") = py::none(),
             py::arg("iterations") = py::none(), py::arg("seed") = 0,
             R"(Finds which layers make up each stage, together with the order of the stages' work.

The result is never worse than stages of equally many layers under a short search. Ctrl-C ends it.

Args:
    layers: Costs with one entry for each layer, or one for all. Times and sizes of a stage are the
        sums of its layers'; the message out of it is that of its last layer.
    num_ranks: Ranks of the pipeline, at least 1.
    num_microbatches: At least 1.
    memory_limit: What the activations of a rank may take at any time; one number, or one for each
        rank; None: no limit. In the unit of activation_size.
    activation_size: Of one microbatch on a layer; one number, or one for each layer.
    objective: As in Schedule.search.
    placements: As in Schedule.search; None: one stage on each rank, and a V of two.
    num_stages: Of the model, for placements that are words.
    num_layers: None: as many as there are costs.
    time_limit: Seconds; None: 10, or no limit if there are iterations.
    iterations: Orders that are tried for the best partition. With this limit alone the answer
        depends on the arguments only.
    seed: Of the random numbers.

Raises:
    ValueError: Costs, limits or placements that don't fit each other, fewer layers than stages, or
        a limit that no schedule can keep, with the least that would do.)");
}

}  // namespace pipert
