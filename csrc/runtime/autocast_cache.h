// AutocastCache: keeps autocast's casts of the weights from one microbatch to the next.
//
// torch keeps them until the outermost autocast context of a thread ends, and then clears the cache
// of the whole process: a module with a context in its forward would cast its weights once for each
// microbatch, and take other ranks' casts away.
#pragma once

namespace pipert {

// While it lives, no autocast context on the calling thread is the outermost one.
class AutocastCache {
 public:
  AutocastCache();
  ~AutocastCache();
  AutocastCache(const AutocastCache&) = delete;
  AutocastCache& operator=(const AutocastCache&) = delete;

  // Drops all casts of the process: before a pass, or it might find some that were made without
  // gradients, and after it, because then the weights change.
  static void clear();
};

}  // namespace pipert
