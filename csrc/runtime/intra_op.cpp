#include "runtime/intra_op.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>

namespace pipert {

// at::set_num_threads would change the default of the whole process. OpenMP's and MKL's own
// settings belong to the thread; both libraries come inside torch, or don't, so they are looked up.
void set_thread_intra_op_threads(int num_threads) {
  at::get_num_threads();  // torch sets up a thread at its first question, and would undo what
                          // follows
  if (auto* set_openmp =
          reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) {
    set_openmp(num_threads);
  }
  if (auto* set_mkl =
          reinterpret_cast<int (*)(int)>(dlsym(RTLD_DEFAULT, "MKL_Set_Num_Threads_Local"))) {
    set_mkl(num_threads);
  }
}

}  // namespace pipert
