#include "shm/courier.h"

#include <utility>

namespace pipert {

Courier::~Courier() {
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

bool Courier::is_busy() {
  const std::lock_guard lock(mutex_);
  return !parcels_.empty();
}

void Courier::bring(Parcel parcel) {
  const std::lock_guard lock(mutex_);
  parcels_.push_back(std::move(parcel));
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  changed_.notify_all();
}

void Courier::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return is_closed_ || !parcels_.empty(); });
    if (parcels_.empty()) return;
    const Parcel& parcel = parcels_.front();  // a deque's elements stay where they are
    lock.unlock();
    bool is_delivered = false;
    try {
      is_delivered = writer_.write_in_pieces(parcel.bytes.get(), parcel.num_bytes);
    } catch (const std::exception&) {  // the reader is gone: who waits for it will find the same
    }
    lock.lock();
    if (!is_delivered) return;  // nothing will be any more; the parcels stay, so it stays busy
    parcels_.pop_front();
  }
}

}  // namespace pipert
