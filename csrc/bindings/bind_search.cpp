// Schedule.search with its SearchResult, and lower_bounds with Bounds.

#include <algorithm>
#include <utility>

#include "analysis/bounds.h"
#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/search_arguments.h"
#include "schedule/registry.h"
#include "search/options.h"
#include "search/search.h"

namespace py = pybind11;

namespace pipert {
namespace {

SearchResult search_schedule(const Costs& costs, int num_ranks, int num_microbatches,
                             const std::optional<OneOrMany>& memory_limit,
                             const OneOrMany& activation_size, const std::string& objective,
                             const std::optional<PlacementChoices>& placements,
                             std::optional<int> num_stages, std::vector<Schedule> seeds,
                             std::optional<double> time_limit,
                             std::optional<std::int64_t> iterations, std::uint64_t seed,
                             std::optional<int> num_threads) {
  if (num_threads && *num_threads < 1) {
    throw ValueError(concat("num_threads must be at least 1, got ", *num_threads));
  }
  const MemoryCap cap = make_cap(memory_limit, activation_size, costs);
  const SearchRequest request{
      .costs = costs,
      .num_microbatches = num_microbatches,
      .cap = cap,
      .objective = to_objective(objective),
      .placements = placements_of(to_choices(placements), num_ranks,
                                  num_stages ? num_stages : longest_of(costs, cap)),
      .seeds = std::move(seeds),
      .time_limit = time_limit,
      .iterations = iterations,
      .seed = seed,
      .num_threads = num_threads.value_or(0)};
  const py::gil_scoped_release released;
  return search(request, look_for_signals);
}

Bounds bounds_of(const Placement& placement, int num_microbatches, const Costs& costs,
                 const std::optional<OneOrMany>& memory_limit, const OneOrMany& activation_size) {
  return lower_bounds(placement, num_microbatches, costs,
                      make_cap(memory_limit, activation_size, costs));
}

std::map<std::string, std::int64_t> schedule_options(const std::string& name, const Costs& costs,
                                                     const std::optional<OneOrMany>& memory_limit,
                                                     const OneOrMany& activation_size) {
  Costs one_share = costs;
  auto& shares = one_share.weight_share;
  if (!shares.empty()) shares = {*std::max_element(shares.begin(), shares.end())};
  return options_for(generator_of(name), costs, make_cap(memory_limit, activation_size, one_share));
}

std::vector<std::pair<std::string, double>> seeds_of(const SearchResult& result) {
  std::vector<std::pair<std::string, double>> seeds;
  for (const Candidate& seed : result.seeds) seeds.emplace_back(seed.source, seed.value);
  return seeds;
}

void bind_bounds(py::module_& module) {
  py::class_<Bounds>(module, "Bounds", "No schedule can be faster; see docs/schedules.md.")
      .def_property_readonly(
          "span", [](const Bounds& self) { return self.span.value; },
          "Of the longest span of a rank, first start to last end.")
      .def_property_readonly(
          "makespan", [](const Bounds& self) { return self.makespan.value; },
          "Of first start on any rank to last end on any.")
      .def_property_readonly(
          "span_reason", [](const Bounds& self) { return reason_name(self.span.reason); },
          "Why the span can't be shorter: work, fill and drain, path, or in flight.")
      .def_property_readonly(
          "makespan_reason", [](const Bounds& self) { return reason_name(self.makespan.reason); },
          "Likewise, of the makespan's bound.")
      .def("__repr__", [](const Bounds& self) {
        return concat("<Bounds: span ", self.span.value, ", makespan ", self.makespan.value, ">");
      });
  module.def("lower_bounds", &bounds_of, py::arg("placement"), py::arg("num_microbatches"),
             py::arg("costs"), py::kw_only(), py::arg("memory_limit") = py::none(),
             py::arg("activation_size") = 1.0, py::call_guard<py::gil_scoped_release>(),
             R"(What no schedule of one copy of the model can beat, in any order.

Args:
    placement: Which rank owns which stage.
    num_microbatches: At least 1.
    costs: What actions and messages take; its weight_share, what of an activation stays from I to W.
    memory_limit: As in Schedule.verify.
    activation_size: As in Schedule.verify.

Raises:
    ValueError: Values that don't fit the placement, two copies of the model, or a limit that no
        schedule can keep, with the least that would do.)");
}

void bind_options(py::module_& module) {
  module.def("schedule_options", &schedule_options, py::arg("name"), py::arg("costs"),
             py::kw_only(), py::arg("memory_limit") = py::none(), py::arg("activation_size") = 1.0,
             py::call_guard<py::gil_scoped_release>(),
             R"(The options of a schedule that is made for given times; none for all others.

Schedule.build(name, ..., **schedule_options(name, costs)) is then the schedule for these costs. It
knows one time of each kind, the mean over the stages, and one limit, the tightest of the ranks, for
the largest activation and weight_share.

Args:
    name: As in Schedule.build; "zb_auto" is the one that is made for given times.
    costs: What actions and messages take; of latencies the one of edges without their own.
    memory_limit: As in Schedule.search; None: as many activations as it likes.
    activation_size: As in Schedule.search.

Raises:
    ValueError: An unknown name, or numbers that are not finite and at least 0.)");
}

void bind_result(py::module_& module) {
  py::class_<SearchResult>(module, "SearchResult", "What Schedule.search found.")
      .def_readonly("schedule", &SearchResult::schedule)
      .def_readonly("timeline", &SearchResult::timeline, "By simulate, under the same costs.")
      .def_readonly("value", &SearchResult::value, "The objective: the makespan or longest span.")
      .def_readonly(
          "source", &SearchResult::source,
          "The name of a schedule, 'list scheduling', 'local search' or, where transfers block "
          "and all of these deadlock, 'one at a time'.")
      .def_readonly("options", &SearchResult::options,
                    "Those that Schedule.build takes to build a source that is a name; else empty.")
      .def_readonly("bounds", &SearchResult::bounds, "No schedule can be faster.")
      .def_readonly("bound", &SearchResult::bound, "The one of the objective.")
      .def_property_readonly("gap", &SearchResult::gap,
                             "The share of the value that a better schedule could save at most.")
      .def_property_readonly(
          "seeds", &seeds_of,
          "(name, value) of the given seeds, and the named schedules that fit, best first.")
      .def_readonly("iterations", &SearchResult::iterations, "Orders that were tried.")
      .def_readonly("seconds", &SearchResult::seconds)
      .def("__repr__", [](const SearchResult& self) {
        return concat("<SearchResult: ", self.value, " by ", self.source, ", bound ", self.bound,
                      ", gap ", self.gap(), ">");
      });
}

}  // namespace

// REQUIRES bind_ir and bind_analysis.
void bind_search(py::module_& module) {
  bind_bounds(module);
  bind_options(module);
  bind_result(module);
  py::class_<Schedule> schedule(module.attr("Schedule"));
  schedule.def_static(
      "search", &search_schedule, py::arg("costs"), py::arg("num_ranks"),
      py::arg("num_microbatches"), py::arg("memory_limit") = py::none(), py::kw_only(),
      py::arg("activation_size") = 1.0, py::arg("objective") = "makespan",
      py::arg("placements") = py::none(), py::arg("num_stages") = py::none(),
      py::arg("seeds") = std::vector<Schedule>(), py::arg("time_limit") = py::none(),
      py::arg("iterations") = py::none(), py::arg("seed") = 0, py::arg("num_threads") = py::none(),
      R"(Finds an order of F, I and W for given costs and memory, on all cores.

It is never worse than the best named schedule of the same placements that fits the memory, and
comes with a lower bound. Ctrl-C ends it.

Args:
    costs: What actions and messages take; one number, or one for each stage. Its weight_share,
        one for all stages here, says what of an activation takes room from I to W.
    num_ranks: Ranks of the pipeline, at least 1.
    num_microbatches: At least 1.
    memory_limit: What the activations of a rank may take at any time; one number, or one for each
        rank; None: no limit. As in Schedule.verify: in the unit of activation_size.
    activation_size: Of one microbatch on a stage; one number, or one for each stage. With the
        default of 1 a rank of two stages that holds both activations of a microbatch holds 2.
    objective: "makespan", first start to last end; or "span", the longest of any rank.
    placements: "loop", "v", a Placement, or a list of them; None: loop and V of num_stages.
    num_stages: Of the model; None: as many as there are costs or sizes, as a Placement has, two
        for each rank with placements="v", else one.
    seeds: Schedules to start from besides the named ones, such as one of periodic_schedule.
    time_limit: Seconds of the search; the named schedules are built and simulated in any case.
        None: 10, or no limit if there are iterations.
    iterations: How many orders are tried for each placement. With this limit alone the answer
        depends on the arguments only.
    seed: Of the random numbers.
    num_threads: None: one for each core.

Raises:
    ValueError: Costs, limits or placements that don't fit each other, or a limit that no schedule
        can keep, with the least that would do.)");
}

}  // namespace pipert
