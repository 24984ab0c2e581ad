// Transfers: what goes from one rank to another in a schedule, and between which places.
#pragma once

#include <vector>

#include "analysis/action_index.h"
#include "analysis/backward_forms.h"
#include "analysis/stage_messages.h"
#include "ir/schedule.h"

namespace pipert {

// In a lowered schedule (one that spells its transfers out) the places are those of the SEND and
// the RECV, else those of the action that makes the result and of the one that reads it.
struct Transfer {
  Place sender;
  Place receiver;
};

// Whether it is a SEND or a RECV.
bool is_transfer(const Action& action);

// Whether the schedule has any SEND or RECV.
bool is_lowered(const Schedule& schedule);

// Where `stage` does what `made` is: its forward, or its own part of the backward that makes the
// gradient. `forms`: of the schedule that is indexed.
Place reader_of(const Action& made, StageIndex stage, const ActionIndex& index,
                const BackwardForms& forms);

// In the order of the receivers: by rank, then by position. REQUIRES a complete schedule, with
// overlapped pairs taken apart, and its index.
std::vector<Transfer> transfers_of(const Schedule& schedule, const ActionIndex& index);

// Those to ranks that no neighbour of the maker is on: from the action that makes the result to the
// first that reads it there, lowered or not. In the order of the senders. REQUIRES the same.
std::vector<Transfer> skip_transfers(const Schedule& schedule, const ActionIndex& index,
                                     const StageMessages& messages);

}  // namespace pipert
