// lower_blindly: Programs of a schedule that may be wrong.
//
// lower() refuses what verify() refuses, so its Programs can't show that verify() is right. These
// take the schedule at its word: action after action, a rank receives the input, runs, and sends
// the result to the rank that owns the stage that reads it. What is missing is waited for, what is
// there twice runs twice. Slots and marks are not shared out with care: good for rehearse() alone.
#pragma once

#include <vector>

#include "ir/schedule.h"
#include "plan/program.h"

namespace pipert {

// One Program for each rank. REQUIRES F, B, I, W, R, OFFLOAD and RELOAD alone, of any stage and
// microbatch, of whole sequences and version 0, and a placement of as many ranks as the schedule
// has (ValueError otherwise). The n-th time that a rank reads a message it gets the n-th of that
// name; if so many are never sent, it waits for ever.
std::vector<Program> lower_blindly(const Schedule& schedule);

}  // namespace pipert
