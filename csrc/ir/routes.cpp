#include "ir/routes.h"

#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

void check(const ValueRoute& value, std::size_t num_stages) {
  StageIndex before = value.maker;
  bool is_right = value.maker >= 0 && !value.readers.empty();
  for (const StageIndex reader : value.readers) {
    is_right = is_right && reader > before && as_index(reader) < num_stages;
    before = reader;
  }
  if (is_right) return;
  throw ValueError(
      concat("a value needs a maker from 0, and readers behind it in ascending order, below ",
             num_stages, ": not so ", value.name));
}

}  // namespace

void check(const Routes& routes) {
  for (const ValueRoute& value : routes.values) check(value, routes.stages.size());
  for (const StageRoutes& stage : routes.stages) {
    for (const auto* ids : {&stage.inputs, &stage.outputs}) {
      for (const ValueId id : *ids) {
        if (id >= 0 && as_index(id) < routes.values.size()) continue;
        throw ValueError(concat("expected one of ", routes.values.size(), " values, got ", id));
      }
    }
  }
}

StageGraph stage_graph(const Routes& routes) {
  StageGraph graph;
  for (const ValueRoute& value : routes.values) {
    StageIndex before = value.maker;
    for (const StageIndex reader : value.readers) {
      if (reader > value.maker + 1) graph.activations.push_back({value.maker, reader});
      if (value.differentiable && reader > before + 1) graph.gradients.push_back({reader, before});
      before = reader;
    }
  }
  return make_stage_graph(std::move(graph.activations), std::move(graph.gradients));
}

}  // namespace pipert
