// one_or_each: numbers that a caller gives as one for all, or as one for each stage, rank or layer.
#pragma once

#include <string_view>
#include <vector>

namespace pipert {

// `values[index]`, or the one value of all. REQUIRES values that fit.
double one_of(const std::vector<double>& values, int index);

// One for each of `size`. REQUIRES values that fit.
std::vector<double> spread(const std::vector<double>& values, int size);

// Throws ValueError unless the value is finite and at least 0.
void require_number(std::string_view name, double value);

// Throws ValueError unless each is, and there is one, or `size` of them: "num_stages", `what` says.
void require_one_or_each(std::string_view name, const std::vector<double>& values, int size,
                         std::string_view what);

}  // namespace pipert
