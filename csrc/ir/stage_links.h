// StageLinks: whose results each stage reads and who reads its own: the chain's neighbours and what
// a StageGraph adds, looked up by stage.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "base/index.h"
#include "ir/stage_graph.h"

namespace pipert {

class StageLinks {
 public:
  // `graph` holds in each copy of the model. REQUIRES that its stages are there.
  StageLinks(const StageGraph& graph, int num_stages, int num_copies);

  // The stages whose message of `kind` this one reads, the nearest first: they made it last.
  std::span<const StageIndex> sources(MessageKind kind, StageIndex stage) const {
    return of_kind(kind).sources[as_index(stage)];
  }
  // Those that read the message of `kind` that this one makes, the nearest first: they run first.
  std::span<const StageIndex> readers(MessageKind kind, StageIndex stage) const {
    return of_kind(kind).readers[as_index(stage)];
  }

 private:
  struct Links {
    std::vector<std::vector<StageIndex>> sources;  // by stage
    std::vector<std::vector<StageIndex>> readers;
  };

  const Links& of_kind(MessageKind kind) const { return links_[static_cast<std::size_t>(kind)]; }

  std::array<Links, 2> links_;  // by MessageKind
};

}  // namespace pipert
