#include "bindings/python_threads.h"

#include <pybind11/pybind11.h>

#include <map>

namespace pipert {

// Guarded by the GIL.
struct PythonThreads::Table {
  std::map<int, unsigned long> identities;  // by worker
};

namespace {
thread_local PyThreadState* state = nullptr;  // the worker's own, while it is not in Python
}  // namespace

WorkerHooks PythonThreads::hooks() {
  table_ = std::make_shared<Table>();
  WorkerHooks hooks;
  hooks.on_start = [table = table_](int worker) {
    PyGILState_Ensure();
    table->identities[worker] = PyThread_get_thread_ident();
    state = PyEval_SaveThread();
  };
  hooks.on_exit = [table = table_](int worker) {
    PyEval_RestoreThread(state);
    table->identities.erase(worker);
    PyGILState_Release(PyGILState_UNLOCKED);
  };
  return hooks;
}

void PythonThreads::interrupt() { set_exception(PyExc_KeyboardInterrupt); }

void PythonThreads::clear() { set_exception(nullptr); }

void PythonThreads::set_exception(void* exception) {
  if (table_ == nullptr) return;
  for (const auto& [worker, identity] : table_->identities) {
    PyThreadState_SetAsyncExc(identity, static_cast<PyObject*>(exception));
  }
}

}  // namespace pipert
