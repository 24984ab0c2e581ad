#include "ir/stage_graph.h"

#include <algorithm>
#include <string_view>

#include "base/error.h"

namespace pipert {
namespace {

std::string to_string(const StagePair& pair) { return concat(pair.from, "->", pair.to); }

void sort_unique(std::vector<StagePair>& pairs) {
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
}

std::string listed(std::string_view word, const std::vector<StagePair>& pairs) {
  std::string text(word);
  for (const StagePair& pair : pairs) text += ' ' + to_string(pair);
  return text;
}

}  // namespace

StageGraph make_stage_graph(std::vector<StagePair> activations, std::vector<StagePair> gradients) {
  for (const StagePair& pair : activations) {
    if (pair.from >= 0 && pair.to - 1 > pair.from) continue;
    throw ValueError(
        concat("expected activations from a stage to one after the next, got ", to_string(pair)));
  }
  for (const StagePair& pair : gradients) {
    if (pair.to >= 0 && pair.from - 1 > pair.to) continue;
    throw ValueError(concat("expected gradients from a stage to one before the one before it, got ",
                            to_string(pair)));
  }
  sort_unique(activations);
  sort_unique(gradients);
  return {std::move(activations), std::move(gradients)};
}

void require_stages(const StageGraph& graph, int stages_per_copy) {
  const auto check = [&](const StagePair& pair) {
    if (std::max(pair.from, pair.to) < stages_per_copy) return;
    throw ValueError(concat("a stage graph has ", to_string(pair), ", but there are ",
                            stages_per_copy, " stages"));
  };
  std::for_each(graph.activations.begin(), graph.activations.end(), check);
  std::for_each(graph.gradients.begin(), graph.gradients.end(), check);
}

std::string to_string(const StageGraph& graph) {
  if (graph.is_chain()) return "the chain";
  std::string text;
  if (!graph.activations.empty()) text += listed("activations", graph.activations);
  if (!graph.activations.empty() && !graph.gradients.empty()) text += ", ";
  if (!graph.gradients.empty()) text += listed("gradients", graph.gradients);
  return text;
}

}  // namespace pipert
