#include "runtime/message_values.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {

MessageValues::MessageValues(Routes routes, Placement placement)
    : routes_(std::move(routes)), placement_(std::move(placement)) {
  if (routes_.stages.size() == as_index(placement_.stages_per_copy())) return;
  throw ValueError(concat("expected the routes of ", placement_.stages_per_copy(),
                          " stages, got those of ", routes_.stages.size()));
}

const ValueRoute& MessageValues::value(ValueId id) const { return routes_.values[as_index(id)]; }

const StageRoutes& MessageValues::stage(StageIndex stage) const {
  return routes_.stages[as_index(piece(stage))];
}

std::vector<StageIndex> MessageValues::readers_of(MessageKind kind, StageIndex maker,
                                                  ValueId id) const {
  const ValueRoute& route = value(id);
  if (kind == MessageKind::kActivation)
    return route.maker == maker ? route.readers : std::vector<StageIndex>();
  const auto found = std::find(route.readers.begin(), route.readers.end(), maker);
  if (!route.differentiable || found == route.readers.end()) return {};
  return {found == route.readers.begin() ? route.maker : *(found - 1)};
}

template <typename IsMeant>
std::vector<ValueId> MessageValues::select(MessageKind kind, StageIndex maker,
                                           const IsMeant& is_meant) const {
  const StageIndex begin = maker - piece(maker);  // of its copy
  std::vector<ValueId> selected;
  for (ValueId id = 0; id < num_values(); ++id) {
    const std::vector<StageIndex> readers = readers_of(kind, piece(maker), id);
    if (std::any_of(readers.begin(), readers.end(),
                    [&](StageIndex reader) { return is_meant(begin + reader); }))
      selected.push_back(id);
  }
  return selected;
}

std::vector<ValueId> MessageValues::read(MessageKind kind, StageIndex maker,
                                         StageIndex reader) const {
  return select(kind, maker, [&](StageIndex other) { return other == reader; });
}

std::vector<ValueId> MessageValues::kept(MessageKind kind, StageIndex maker,
                                         StageIndex reader) const {
  const Rank rank = placement_.rank_of(reader);
  return select(kind, maker, [&](StageIndex other) {
    const bool is_after = kind == MessageKind::kActivation ? other > reader : other < reader;
    return is_after && placement_.rank_of(other) == rank;
  });
}

std::vector<ValueId> MessageValues::brought(MessageKind kind, StageIndex maker,
                                            StageIndex reader) const {
  const std::vector<ValueId> own = read(kind, maker, reader);
  const std::vector<ValueId> kept = this->kept(kind, maker, reader);
  std::vector<ValueId> all;
  std::set_union(own.begin(), own.end(), kept.begin(), kept.end(), std::back_inserter(all));
  return all;
}

std::vector<ValueId> MessageValues::sent(MessageKind kind, StageIndex maker, Rank rank) const {
  return select(kind, maker, [&](StageIndex other) { return placement_.rank_of(other) == rank; });
}

std::vector<bool> MessageValues::are_read_elsewhere(StageIndex reader) const {
  std::vector<bool> read;
  for (const ValueId id : stage(reader).inputs) read.push_back(value(id).readers.size() > 1);
  return read;
}

bool MessageValues::is_read_nearby(ValueId id, StageIndex reader) const {
  const StageIndex begin = reader - piece(reader);
  const auto& readers = value(id).readers;
  return std::any_of(readers.begin(), readers.end(), [&](StageIndex other) {
    return begin + other != reader &&
           placement_.rank_of(begin + other) == placement_.rank_of(reader);
  });
}

}  // namespace pipert
