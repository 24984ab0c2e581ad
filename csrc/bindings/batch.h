// Cuts a batch into microbatches, as its specs say. REQUIRES the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bindings/batch_spec.h"
#include "bindings/piece_cache.h"
#include "bindings/python_tree.h"

namespace pipert {

// The rows of `value`: the size of its first tensor that is cut, along the dimension in which it
// is; nothing if there is none. `what` names the value.
std::optional<std::int64_t> batch_rows(pybind11::handle value, const BatchSpec& spec,
                                       const std::string& what);

// The pieces of `value`. Tensors without dimensions and values that nothing is said of go into
// every piece as they are. ValueError if a tensor that is cut has not `rows` rows, if rows <
// num_microbatches, or if the spec doesn't fit.
std::vector<pybind11::object> cut_batch(pybind11::handle value, const BatchSpec& spec,
                                        PieceCache& cache, std::int64_t rows,
                                        const std::string& what);

// ValueError or TypeError if `value` can't be cut like that. Runs no code of the user's, which may
// have its own objections.
void check_cut(pybind11::handle value, const BatchSpec& spec, int num_microbatches,
               std::int64_t rows, const std::string& what);

// The pieces that cut_batch gives, flat; nothing if they can't be had without Python objects.
std::optional<std::vector<FlatValue>> cut_batch_flat(pybind11::handle value, const BatchSpec& spec,
                                                     PieceCache& cache, std::int64_t rows,
                                                     const std::string& what);

// The share of each piece in the batch.
std::vector<double> batch_weights(int num_microbatches, std::int64_t rows);

}  // namespace pipert
