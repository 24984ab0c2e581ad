// The end of a pass among processes of one host, in shared memory.
#pragma once

#include <memory>

#include "shm/meeting.h"
#include "transport/agreement.h"

namespace pipert {

std::unique_ptr<Agreement> make_shm_agreement(std::unique_ptr<Meeting> meeting);

}  // namespace pipert
