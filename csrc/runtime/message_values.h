// MessageValues: which values each message between stages carries.
//
// An activation carries values that its stage makes, for all readers on the rank that it goes to; a
// gradient the sums so far of values that its stage reads, for the readers before it, or the makers
// (Note [Star and relay] in ir/routes.h). A rank takes a message once: the first of its stages that
// reads it keeps what is for the others.
//
// Immutable; any number of threads may read it. Values stand in ascending order everywhere.
#pragma once

#include <vector>

#include "ir/placement.h"
#include "ir/routes.h"

namespace pipert {

class MessageValues {
 public:
  // REQUIRES routes of the stages of one copy of the model, whose placement this is.
  MessageValues(Routes routes, Placement placement);

  int num_values() const { return static_cast<int>(routes_.values.size()); }
  const ValueRoute& value(ValueId id) const;
  // What the stage takes and makes; of a second copy of the model as of the first.
  const StageRoutes& stage(StageIndex stage) const;
  // The stage's number in its copy.
  StageIndex piece(StageIndex stage) const { return stage % placement_.stages_per_copy(); }

  // Of the result of stage `maker`, what is for stage `reader`.
  std::vector<ValueId> read(MessageKind kind, StageIndex maker, StageIndex reader) const;
  // What is for those stages of its rank that run after it, ...
  std::vector<ValueId> kept(MessageKind kind, StageIndex maker, StageIndex reader) const;
  // ... and for either.
  std::vector<ValueId> brought(MessageKind kind, StageIndex maker, StageIndex reader) const;
  // What is for stages of `rank`.
  std::vector<ValueId> sent(MessageKind kind, StageIndex maker, Rank rank) const;

  // By argument of the stage, whether other stages read it too.
  std::vector<bool> are_read_elsewhere(StageIndex reader) const;
  // Whether other stages of its rank do.
  bool is_read_nearby(ValueId id, StageIndex reader) const;

 private:
  // The values of the result with a reader for which `is_meant` holds, of a stage of its copy.
  template <typename IsMeant>
  std::vector<ValueId> select(MessageKind kind, StageIndex maker, const IsMeant& is_meant) const;
  // Who reads the value in the result of `maker`; empty if it isn't in there. By pieces.
  std::vector<StageIndex> readers_of(MessageKind kind, StageIndex maker, ValueId id) const;

  Routes routes_;
  Placement placement_;
};

}  // namespace pipert
