// How many threads torch's operators use on the calling thread.
#pragma once

namespace pipert {

// Sets it for the calling thread and leaves the other threads' as it is. Call it once, on a new
// thread.
void set_thread_intra_op_threads(int num_threads);

}  // namespace pipert
