// Values of a batch that are cut by code other than ours: by a function of the user's, or by
// themselves. REQUIRES the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace pipert {

// Whether it has a method pipert_cut, or is a BlockMask of torch's.
bool cuts_itself(pybind11::handle value);

// Its pieces. REQUIRES that it cuts itself. ValueError if they aren't as many as microbatches;
// throws what its code throws. `what` names it.
std::vector<pybind11::object> own_pieces(pybind11::handle value, int num_microbatches,
                                         std::int64_t rows, const std::string& what);

// What `cut` makes of it and of the number of microbatches, likewise.
std::vector<pybind11::object> custom_pieces(pybind11::handle value, const pybind11::object& cut,
                                            int num_microbatches, const std::string& what);

}  // namespace pipert
