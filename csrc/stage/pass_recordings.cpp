#include "stage/pass_recordings.h"

#include <algorithm>
#include <utility>

namespace pipert {
namespace {

// Forms of messages that are told apart. Where no two are alike, none is ever recorded.
constexpr std::size_t kMaxVariants = 64;
constexpr int kMaxAttempts = 3;  // there may be no memory, at first

}  // namespace

bool PassRecordings::is_warm() const {
  return std::any_of(variants_.begin(), variants_.end(), [this](const Variant& variant) {
    return variant.num_seen >= num_warmups_ && variant.refusal.empty();
  });
}

PassMode PassRecordings::choose(const Message& first, bool can_record) {
  recording_ = nullptr;
  const auto found = std::find_if(variants_.begin(), variants_.end(), [&](const Variant& variant) {
    return variant.first.matches(first);
  });
  if (found == variants_.end()) {
    if (variants_.size() == kMaxVariants) variants_.erase(variants_.begin());
    variants_.push_back({.first = MessageForm(first), .refusal = {}, .recording = nullptr});
  } else {
    std::rotate(found, found + 1, variants_.end());
  }
  Variant& variant = variants_.back();
  if (variant.recording != nullptr) {
    recording_ = variant.recording;
    return PassMode::kReplay;
  }
  reason_ = variant.refusal;
  if (!reason_.empty()) return PassMode::kEager;
  if (variant.num_seen >= num_warmups_ && can_record) {
    recording_ = std::make_shared<ActionRecording>();
    return PassMode::kRecord;
  }
  variant.num_seen = std::min(variant.num_seen + 1, num_warmups_);
  reason_ = "warming up: pass " + std::to_string(variant.num_seen) + " of " +
            std::to_string(num_warmups_) + " of its kind";
  return PassMode::kEager;
}

void PassRecordings::keep() { variants_.back().recording = recording_; }

void PassRecordings::drop(std::string reason, bool is_final) {
  recording_ = nullptr;
  variants_.back().recording = nullptr;
  const bool is_last_attempt = !reason.empty() && ++variants_.back().num_dropped == kMaxAttempts;
  if (is_final || is_last_attempt) variants_.back().refusal = std::move(reason);
}

std::size_t PassRecordings::num_recordings() const {
  return static_cast<std::size_t>(
      std::count_if(variants_.begin(), variants_.end(),
                    [](const Variant& variant) { return variant.recording != nullptr; }));
}

bool PassRecordings::drop_oldest() {
  for (auto variant = variants_.begin(); variant + 1 < variants_.end(); ++variant) {
    if (variant->recording == nullptr) continue;
    variants_.erase(variant);
    return true;
  }
  return false;
}

}  // namespace pipert
