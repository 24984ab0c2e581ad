#include "stage/mode_scopes.h"

#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>

namespace pipert {
namespace {

Autocast current_autocast(c10::DeviceType device) {
  return {device, at::autocast::get_autocast_dtype(device),
          at::autocast::is_autocast_enabled(device), at::autocast::is_autocast_cache_enabled()};
}

void set(const Autocast& mode) {
  at::autocast::set_autocast_enabled(mode.device, mode.enabled);
  at::autocast::set_autocast_dtype(mode.device, mode.dtype);
  at::autocast::set_autocast_cache_enabled(mode.cache);
}

}  // namespace

ModeScopes::~ModeScopes() {
  while (!entered_.empty()) leave();
}

void ModeScopes::enter(const GradMode& mode) {
  entered_.push_back(
      {.is_autocast = false, .grad_enabled = c10::GradMode::is_enabled(), .autocast = {}});
  c10::GradMode::set_enabled(mode.enabled);
}

void ModeScopes::enter(const Autocast& mode) {
  entered_.push_back({.is_autocast = true, .autocast = current_autocast(mode.device)});
  set(mode);
  at::autocast::increment_nesting();
}

void ModeScopes::leave() {
  const Entered last = entered_.back();
  entered_.pop_back();
  if (!last.is_autocast) {
    c10::GradMode::set_enabled(last.grad_enabled);
    return;
  }
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  set(last.autocast);
}

}  // namespace pipert
