// Gives what autograd saves on this thread to an ActivationStore.
#pragma once

#include <memory>

#include "autograd/activation_store.h"
#include "stage/module_stage.h"

namespace pipert {

// torch knows such hooks as Python functions alone, so each tensor that is saved, and each that is
// read again, takes the GIL. Takes it here too, at the start and at the end. Hooks that the stage's
// own code sets (save_on_cpu, non-reentrant checkpoints) come before these.
std::unique_ptr<Saving> save_into(const std::shared_ptr<ActivationStore>& store);

}  // namespace pipert
