// c10d's own types, whole, for those who take them from Python. Nobody else needs more than their
// names.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
