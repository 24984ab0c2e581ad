// HandlePool: handles that are dear to make and are used again: the events and streams of a device.
//
// Free of torch and of CUDA: it is told how to make one. Any thread.
#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <vector>

namespace pipert {

class HandlePool {
 public:
  using Handle = void*;

  // `make` may throw; it runs without the pool's lock.
  explicit HandlePool(std::function<Handle()> make) : make_(std::move(make)) {}
  HandlePool(const HandlePool&) = delete;
  HandlePool& operator=(const HandlePool&) = delete;

  // The one that came back last, whose state is the likeliest to be in a cache; else a new one.
  Handle take() {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        const Handle handle = free_.back();
        free_.pop_back();
        return handle;
      }
    }
    const Handle handle = make_();
    const std::lock_guard lock(mutex_);
    // Room for all, so that giving back needs no memory.
    free_.reserve(++num_made_);
    return handle;
  }

  // REQUIRES that it came from take(), and that nobody will use it any more.
  void give_back(Handle handle) noexcept {
    const std::lock_guard lock(mutex_);
    free_.push_back(handle);
  }

  std::size_t num_made() const {
    const std::lock_guard lock(mutex_);
    return num_made_;
  }

 private:
  std::function<Handle()> make_;
  mutable std::mutex mutex_;
  std::vector<Handle> free_;
  std::size_t num_made_ = 0;
};

}  // namespace pipert
