#include "runtime/autocast_cache.h"

#include <ATen/autocast_mode.h>

namespace pipert {

AutocastCache::AutocastCache() { at::autocast::increment_nesting(); }

AutocastCache::~AutocastCache() { at::autocast::decrement_nesting(); }

void AutocastCache::clear() { at::autocast::clear_cache(); }

}  // namespace pipert
