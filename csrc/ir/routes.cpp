#include "ir/routes.h"

#include <utility>

namespace pipert {
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
