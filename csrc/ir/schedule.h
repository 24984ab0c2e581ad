// Schedule: for each rank, an ordered list of actions. Pure data: it may be wrong until verify()
// says otherwise.
//
// Note [Sequence slices]
//
// A microbatch's sequence may be cut into slices that pass the stages one after another, as models
// with causal attention allow: the forward of a slice reads the keys and values of those before it,
// so the backward of a slice comes after that of those behind it. Every action of such a schedule
// for a microbatch is for one slice; num_slices says how many there are. Without slices num_slices
// is 1, and actions are for the whole sequence.
//
// Note [Weight versions]
//
// A synchronous schedule uses version 0 of the weights throughout, and the optimizer makes the next
// one after the step. An asynchronous schedule (PipeDream) spells its updates out: UPDATE makes a
// version of a stage's weights from the gradients since the last one, and each compute action says
// which version it uses, the backward of a microbatch that of its forward.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ir/action.h"
#include "ir/placement.h"

namespace pipert {

struct Schedule {
  std::string
      name;  // a label, for people: schedules that do the same are equal whatever they are called
  int num_microbatches = 0;
  int num_slices = 1;  // of each microbatch's sequence
  Placement placement;
  std::vector<std::vector<Action>> ranks;  // ranks[r]: the actions of rank r, in order

  int num_ranks() const { return static_cast<int>(ranks.size()); }
  int num_stages() const { return placement.num_stages(); }

  friend bool operator==(const Schedule& a, const Schedule& b) {
    return a.num_microbatches == b.num_microbatches && a.num_slices == b.num_slices &&
           a.placement == b.placement && a.ranks == b.ranks;
  }
};

// The forward actions alone, in the same order, with the transfers and unshards that they need:
// what evaluation runs. All use the weights as they are (version 0).
Schedule forward_only(const Schedule& schedule);

// The same schedule with each OVERLAP_F_B taken apart: its forward, then its backward.
Schedule split_overlaps(const Schedule& schedule);

// Whether the halves of an OVERLAP_F_B can run jointly: not where its backward is that of its own
// forward.
bool can_run_jointly(const Action& pair);

// One more than the largest microbatch of any action.
int count_microbatches(const std::vector<std::vector<Action>>& ranks);

// One more than the largest slice of any action, at least 1.
int count_slices(const std::vector<std::vector<Action>>& ranks);

// Whether every compute action is a forward.
bool is_forward_only(const Schedule& schedule);

// Whether a stage goes on to compute after an update of it (Note [Weight versions]): an update of
// version 2 or later, or a use of version 1 or later, shows it. An update at the end of the step
// leaves a schedule synchronous.
bool is_asynchronous(const Schedule& schedule);

// One line for each rank: "rank 0: 0F0 0F1 0B0 ...".
std::string to_string(const Schedule& schedule);

// CSV in PyTorch's form: one row for each rank, one action in each cell; an empty cell is an idle
// step, which carries no meaning (order is all that counts) and is dropped. Lines end in \n; \r\n
// is read too, and blanks around a cell.
std::string to_csv(const Schedule& schedule);

// The placement is read off the compute actions; num_microbatches is one more than the largest
// microbatch, and num_slices than the largest slice. Throws ValueError with row and column (from
// 1), the cell's text and the reason.
Schedule parse_csv(std::string_view text, std::string name = "csv");

}  // namespace pipert
