// Which of a module's counters a launch has for its blocks to count themselves with, so that the
// last one knows that it is.
//
// Note [The last block]
// Counters are zero between launches: whoever comes last sets its one back, as atomicInc does.
// Two launches that may run at once need two, and memory that the caller brings for the occasion
// can't hold them: nobody set it to zero, and before a recorded launch runs again others may have
// used it. So there is one for each stream, as launches of a stream run one after the other, and
// one for each recorded launch, as a graph doesn't run beside itself. None is ever given back.
#pragma once

#include <cuda_runtime.h>

namespace pipert::kernels {

constexpr unsigned kNumCounters = 4096;

// An index below kNumCounters, or kNumCounters if all are taken: then the launch needs memory that
// is set to zero before it, which takes a microsecond or two. Any thread may call it.
unsigned counter_for(cudaStream_t stream);

}  // namespace pipert::kernels
