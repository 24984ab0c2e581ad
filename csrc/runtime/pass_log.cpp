#include "runtime/pass_log.h"

#include <algorithm>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

std::size_t longest(const Program& training, const Program& evaluation) {
  return std::max(training.instructions.size(), evaluation.instructions.size());
}

std::vector<std::string> range_names(const Program& program) {
  std::vector<std::string> names;
  for (const Instruction& instruction : program.instructions) {
    const auto* run = std::get_if<Run>(&instruction.op);
    const auto* move = std::get_if<Move>(&instruction.op);
    const Action* action = run != nullptr    ? &run->action
                           : move != nullptr ? &move->action
                                             : nullptr;
    names.push_back(action == nullptr ? std::string()
                                      : concat("rank ", program.rank, " ", to_string(*action)));
  }
  return names;
}

// Of those that are dense: what others take isn't told.
std::int64_t bytes_of(const std::vector<at::Tensor>& tensors) {
  std::int64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined() && tensor.layout() == at::kStrided)
      bytes += static_cast<std::int64_t>(tensor.nbytes());
  }
  return bytes;
}

}  // namespace

PassLog::PassLog(const TraceOptions& options, const Program& training, const Program& evaluation,
                 const c10::Device& device)
    : device_(device), trace_(options.num_passes, longest(training, evaluation)) {
  if (options.device_times) {
    device_times_ =
        make_device_times(device, as_index(options.num_passes), longest(training, evaluation));
  }
  if (!options.profiler_ranges) return;
  training_ranges_ = range_names(training);
  evaluation_ranges_ = range_names(evaluation);
}

void PassLog::begin(bool training, std::int64_t begun_ns) {
  trace_.begin(training, begun_ns);
  if (device_times_ != nullptr) device_times_->begin(trace_.place());
  memory_ = {};
  if (meter_.has_value()) meter_->reset();
  is_training_ = training;
  num_activations_.store(0, std::memory_order_relaxed);
  peak_activations_.store(0, std::memory_order_relaxed);
}

void PassLog::enter() {
  if (meter_.has_value()) measuring_ = meter_->start();
  issued_ns_ = clock_ns();
}

void PassLog::come_to_instruction() {
  started_ns_ = sent_bytes_ = 0;
  if (measuring_ != nullptr) memory_.bytes.push_back(meter_->bytes());
}

void PassLog::note(std::int64_t ended_ns) {
  if (PassTrace* const trace = trace_.current()) {
    const std::int64_t started = started_ns_ == 0 ? issued_ns_ : started_ns_;
    trace->events[trace->num_events++] = {issued_ns_, started, ended_ns, sent_bytes_};
  }
  issued_ns_ = ended_ns;
}

void PassLog::leave_pair(std::int64_t first_ns, std::int64_t second_ns) {
  const std::int64_t ended = clock_ns();
  const auto both = static_cast<double>(std::max<std::int64_t>(1, first_ns + second_ns));
  const double share = static_cast<double>(first_ns) / both;
  note(started_ns_ + static_cast<std::int64_t>(share * static_cast<double>(ended - started_ns_)));
  started_ns_ = issued_ns_;
  if (measuring_ != nullptr) memory_.bytes.push_back(meter_->bytes());
  note(ended);
}

void PassLog::stop_clock() {
  if (PassTrace* const trace = trace_.current()) trace->done_ns = issued_ns_;
}

void PassLog::leave() {
  if (measuring_ == nullptr) return;
  memory_.bytes.push_back(meter_->bytes());
  memory_.peak_bytes = meter_->peak();
  measuring_.reset();
}

void PassLog::send(const std::vector<at::Tensor>& tensors) {
  if (meter_.has_value()) meter_->give(tensors);
  if (trace_.current() != nullptr) sent_bytes_ = bytes_of(tensors);
}

void PassLog::take(const std::vector<at::Tensor>& tensors) {
  if (meter_.has_value()) meter_->take(tensors);
}

const char* PassLog::range_name(std::size_t instruction) const {
  const auto& names = is_training_ ? training_ranges_ : evaluation_ranges_;
  return names.empty() ? nullptr : names[instruction].c_str();
}

void PassLog::count_activations(int change) {
  const int count = num_activations_.fetch_add(change, std::memory_order_relaxed) + change;
  int peak = peak_activations_.load(std::memory_order_relaxed);
  while (peak < count && !peak_activations_.compare_exchange_weak(peak, count)) {
  }
}

}  // namespace pipert
