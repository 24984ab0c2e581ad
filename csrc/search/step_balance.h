// step_balance: which layers make up each stage, so that the step of a given schedule ends soonest.
//
// Note [Equal ranks that wait]
//
// Where a rank has several stages, ranks with equally much work are not all: a rank whose stages
// differ from its neighbours' is early in one round of a schedule and late in the next, and both
// times somebody waits. So cuts are judged by simulate(): first those that are best by rank, by
// stage and by number, then what moving layers makes of the best one.
#pragma once

#include "analysis/costs.h"
#include "ir/schedule.h"
#include "search/balance.h"

namespace pipert {

// As balance(), and the step never ends later than with its cuts. `layers`: costs with one entry
// for each layer, or one for all. `schedule`: of the request's placement. Takes at most 1000
// simulations, or those of 2 million actions. Where the schedule runs two copies of the model it is
// balance(). Deterministic. Throws ValueError as balance() and simulate() do.
Balance step_balance(const BalanceRequest& request, const Costs& layers, const Schedule& schedule);

}  // namespace pipert
