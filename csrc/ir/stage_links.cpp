#include "ir/stage_links.h"

#include <algorithm>
#include <cstdlib>

namespace pipert {
namespace {

std::vector<StagePair> with_chain(std::vector<StagePair> pairs, int stages_per_copy,
                                  MessageKind kind) {
  for (StageIndex stage = 0; stage + 1 < stages_per_copy; ++stage) {
    const bool down = kind == MessageKind::kActivation;
    pairs.push_back(down ? StagePair{stage, stage + 1} : StagePair{stage + 1, stage});
  }
  std::sort(pairs.begin(), pairs.end(), [](const StagePair& a, const StagePair& b) {
    return std::abs(a.from - a.to) < std::abs(b.from - b.to);
  });
  return pairs;
}

}  // namespace

StageLinks::StageLinks(const StageGraph& graph, int num_stages, int num_copies) {
  const int size = num_copies == 0 ? 0 : num_stages / num_copies;
  for (const MessageKind kind : {MessageKind::kActivation, MessageKind::kGradient}) {
    Links& links = links_[static_cast<std::size_t>(kind)];
    links.sources.resize(as_index(num_stages));
    links.readers.resize(as_index(num_stages));
    const bool down = kind == MessageKind::kActivation;
    for (const auto& [from, to] :
         with_chain(down ? graph.activations : graph.gradients, size, kind)) {
      for (int copy = 0; copy < num_copies; ++copy) {
        const StageIndex first = copy * size;
        links.sources[as_index(first + to)].push_back(first + from);
        links.readers[as_index(first + from)].push_back(first + to);
      }
    }
  }
}

}  // namespace pipert
