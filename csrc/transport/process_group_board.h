// The failure board of processes: one key in torch.distributed's store.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <memory>

#include "transport/failure_board.h"

namespace c10d {
class Store;
}

namespace pipert {

// `store`: of this connection alone (a PrefixStore), the same on all its ranks, over a client that
// nobody else uses while ranks run: a client serves one caller at a time, and the user's wait would
// hold up ours.
std::unique_ptr<FailureBoard> make_process_group_board(c10::intrusive_ptr<c10d::Store> store);

}  // namespace pipert
