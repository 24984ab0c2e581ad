// partition: which layers make up each stage, chosen together with the order in which the stages
// run.
//
// Where layers take different times no order makes up for a stage that is too long: its rank's work
// is the least that a step takes. So the cuts between stages are moved, one layer at a time, as
// long as the best order that a short search finds for them gets faster; the best cuts get a long
// search.
#pragma once

#include <functional>

#include "search/layers.h"
#include "search/search.h"

namespace pipert {

struct PartitionRequest {
  // Its costs and activation sizes have one entry, or one for each layer.
  SearchRequest search;
  int num_layers = 0;
};

struct PartitionResult {
  Cuts cuts;
  Costs costs;  // of the stages
  SearchResult search;
  double bound = 0.0;       // no partition over the same placements does better
  Cuts even;                // stages of equally many layers, on the placement where these do best
  double even_value = 0.0;  // the best that a short search found for them
};

// Never worse than even_value. Deterministic under search()'s conditions. `stop` as in search().
// Throws ValueError for fewer layers than stages, costs that don't fit num_layers, and as search().
PartitionResult search_partition(const PartitionRequest& request,
                                 const std::function<bool()>& stop = {});

}  // namespace pipert
