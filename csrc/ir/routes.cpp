#include "ir/routes.h"

#include <algorithm>

namespace pipert {
namespace {

void sort_unique(std::vector<StagePair>& pairs) {
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
}

}  // namespace

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
  sort_unique(graph.activations);
  sort_unique(graph.gradients);
  return graph;
}

}  // namespace pipert
