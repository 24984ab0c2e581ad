// PythonGraphPool: Python objects that stand in for a device's graphs, in tests.
//
// make() returns an object with begin(), end(), abandon() and launch(), as DeviceGraph has them.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "device/device_graph.h"

namespace pipert {

std::unique_ptr<GraphPool> make_python_graph_pool(pybind11::object make);

}  // namespace pipert
