#include "bindings/python_context.h"

namespace py = pybind11;

namespace pipert {

py::dict context_values(const RunContext& context) {
  py::dict values;
  values["is_first_microbatch"] =
      context.turn.first_comes_first ? py::object(py::bool_(context.turn.is_first)) : py::none();
  values["is_last_microbatch"] = py::bool_(context.turn.is_last);
  values["microbatch_index"] = py::int_(context.microbatch);
  return values;
}

}  // namespace pipert
