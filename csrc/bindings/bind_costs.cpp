// Costs: what a schedule is simulated under.

#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <variant>

#include "analysis/costs.h"
#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/one_or_many.h"

namespace py = pybind11;

namespace pipert {
namespace {

using EdgeTuple = std::pair<Rank, Rank>;
using ByEdge = std::map<std::optional<EdgeTuple>, double>;  // None: all others
using OneOrByEdge = std::variant<double, ByEdge>;
using OneOrMoreStages = std::variant<StageIndex, std::vector<StageIndex>>;
using SkipTuples = std::vector<std::tuple<StageIndex, OneOrMoreStages, double>>;
using LinkTuples = std::vector<std::vector<EdgeTuple>>;

std::optional<std::vector<double>> from_vector(const std::vector<double>& values) {
  return values.empty() ? std::nullopt : std::optional(values);
}

EdgeCost to_edge_cost(const OneOrByEdge& costs) {
  if (const auto* one = std::get_if<double>(&costs)) return *one;
  EdgeCost result;
  for (const auto& [edge, value] : std::get<ByEdge>(costs)) {
    if (edge) {
      result.own[{edge->first, edge->second}] = value;
    } else {
      result.standard = value;
    }
  }
  return result;
}

OneOrByEdge from_edge_cost(const EdgeCost& costs) {
  if (costs.own.empty()) return costs.standard;
  ByEdge result = {{std::nullopt, costs.standard}};
  for (const auto& [edge, value] : costs.own)
    result[EdgeTuple(edge.source, edge.destination)] = value;
  return result;
}

std::vector<std::vector<Edge>> to_links(const LinkTuples& links) {
  std::vector<std::vector<Edge>> result;
  for (const auto& edges : links) {
    auto& link = result.emplace_back();
    for (const auto& [source, destination] : edges) link.push_back({source, destination});
  }
  return result;
}

LinkTuples links_of(const Costs& costs) {
  LinkTuples result;
  for (const auto& link : costs.links) {
    auto& edges = result.emplace_back();
    for (const Edge& edge : link) edges.emplace_back(edge.source, edge.destination);
  }
  return result;
}

std::vector<SkipCost> to_skips(const SkipTuples& skips) {
  std::vector<SkipCost> result;
  for (const auto& [from, to, bytes] : skips) {
    const auto* one = std::get_if<StageIndex>(&to);
    result.push_back({.from = from,
                      .to = one ? std::vector{*one} : std::get<std::vector<StageIndex>>(to),
                      .bytes = bytes});
  }
  return result;
}

SkipTuples skips_of(const Costs& costs) {
  SkipTuples result;
  for (const auto& [from, to, bytes] : costs.skips) result.emplace_back(from, to, bytes);
  return result;
}

Costs make_costs(const OneOrMany& forward, const OneOrMany& input, const OneOrMany& weight,
                 const std::optional<OneOrMany>& recompute, const OneOrMany& update,
                 const OneOrMany& reduce, const OneOrMany& unshard, const OneOrMany& reshard,
                 const OneOrMany& offload, const OneOrMany& reload, const OneOrByEdge& latency,
                 const OneOrByEdge& bandwidth, const OneOrMany& bytes,
                 const std::optional<OneOrMany>& gradient_bytes, const LinkTuples& links,
                 bool blocking, const std::optional<OneOrMany>& activation_bytes,
                 const OneOrMany& weight_share, const SkipTuples& skips) {
  return {.forward = to_vector(forward),
          .input = to_vector(input),
          .weight = to_vector(weight),
          .recompute = to_vector(recompute),
          .update = to_vector(update),
          .reduce = to_vector(reduce),
          .unshard = to_vector(unshard),
          .reshard = to_vector(reshard),
          .offload = to_vector(offload),
          .reload = to_vector(reload),
          .latency = to_edge_cost(latency),
          .bandwidth = to_edge_cost(bandwidth),
          .bytes = to_vector(bytes),
          .gradient_bytes = to_vector(gradient_bytes),
          .skips = to_skips(skips),
          .links = to_links(links),
          .blocking = blocking,
          .activation_bytes = to_vector(activation_bytes),
          .weight_share = to_vector(weight_share)};
}

constexpr const char* kArguments = R"(
Args:
    forward: Time of F; one number, or one for each stage.
    input: Time of I, the input half of backward, likewise. B takes input + weight.
    weight: Time of W, the weight half, likewise.
    recompute: Time of a forward that is run again, likewise; None: as `forward`.
    update: Time of the optimizer's update of a stage, likewise. If the schedule has no updates,
        each rank does those of its stages at its end.
    reduce: Time of the reduction of a stage's gradients, likewise; at the end, before the updates,
        if the schedule has none.
    unshard: Time to gather a stage's parameters, likewise.
    reshard: Time to free them, likewise.
    offload: Time that the offload of an activation holds up its rank, likewise.
    reload: The same of its way back.
    latency: Time of one message between ranks; one number, or {(source, destination): time}, in
        which None stands for all other edges (0 if it isn't there).
    bandwidth: Bytes for each unit of time, likewise; 0: infinite. A link carries its messages one
        after another, in the order in which they are ready.
    bytes: Of what a stage hands to the next alone; one number, or one for each stage.
    gradient_bytes: Of what comes back for it, likewise; None: as `bytes`.
    links: Lists of edges (source, destination) that share one link. Other edges have one each.
    blocking: A transfer holds up both of its ranks, and begins when both have come to it. Between
        two actions a rank posts its send and its receive together.
    activation_bytes: What one activation of a stage takes on its rank, for Timeline.peak_bytes; one
        number, or one for each stage.
    weight_share: The part of it that stays from I to W, likewise; from 0 to 1.
    skips: What goes between stages that are no neighbours: (from, to, bytes), `to` a stage or
        several, the nearest first. Those behind `from` read an activation, those before it a
        gradient. It goes once to each rank of `to`, in one message with whatever else goes there.
        Stages are those of one copy of the model.)";

}  // namespace

void bind_costs(py::module_& module) {
  py::class_<Costs>(module, "Costs",
                    "What actions and messages take, in any one unit of time; seconds by custom.")
      .def(py::init(&make_costs), py::kw_only(), py::arg("forward") = 1.0, py::arg("input") = 1.0,
           py::arg("weight") = 1.0, py::arg("recompute") = py::none(), py::arg("update") = 0.0,
           py::arg("reduce") = 0.0, py::arg("unshard") = 0.0, py::arg("reshard") = 0.0,
           py::arg("offload") = 0.0, py::arg("reload") = 0.0, py::arg("latency") = 0.0,
           py::arg("bandwidth") = 0.0, py::arg("bytes") = 0.0,
           py::arg("gradient_bytes") = py::none(), py::arg("links") = LinkTuples(),
           py::arg("blocking") = false, py::arg("activation_bytes") = py::none(),
           py::arg("weight_share") = 1.0, py::arg("skips") = SkipTuples(), kArguments)
      .def_readonly("forward", &Costs::forward)
      .def_readonly("input", &Costs::input)
      .def_readonly("weight", &Costs::weight)
      .def_property_readonly("recompute",
                             [](const Costs& self) { return from_vector(self.recompute); })
      .def_readonly("update", &Costs::update)
      .def_readonly("reduce", &Costs::reduce)
      .def_readonly("unshard", &Costs::unshard)
      .def_readonly("reshard", &Costs::reshard)
      .def_readonly("offload", &Costs::offload)
      .def_readonly("reload", &Costs::reload)
      .def_property_readonly("latency",
                             [](const Costs& self) { return from_edge_cost(self.latency); })
      .def_property_readonly("bandwidth",
                             [](const Costs& self) { return from_edge_cost(self.bandwidth); })
      .def_readonly("bytes", &Costs::bytes)
      .def_property_readonly("gradient_bytes",
                             [](const Costs& self) { return from_vector(self.gradient_bytes); })
      .def_property_readonly("links", &links_of)
      .def_readonly("blocking", &Costs::blocking)
      .def_property_readonly("activation_bytes",
                             [](const Costs& self) { return from_vector(self.activation_bytes); })
      .def_readonly("weight_share", &Costs::weight_share)
      .def_property_readonly("skips", &skips_of)
      .def_property_readonly("stage_graph", py::overload_cast<const Costs&>(&stage_graph),
                             "The pairs of stages that `skips` has, beyond the chain.");
}

}  // namespace pipert
