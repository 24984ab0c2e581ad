#include "runtime/value_exchange.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// The parts as one message. Gradients have no structure.
Message message_of(std::vector<Part> parts, MessageKind kind) {
  if (kind == MessageKind::kActivation) return put_together(std::move(parts));
  Message message;
  for (Part& part : parts)
    std::move(part.tensors.begin(), part.tensors.end(), std::back_inserter(message.tensors));
  message.requires_grad.assign(message.tensors.size(), false);
  return message;
}

// What a message is besides what it carries.
struct Head {
  explicit Head(const Message& message)
      : key(message.key), weight(message.weight), batch_size(message.batch_size) {}
  Message onto(Message message) const {
    message.key = key;
    message.weight = weight;
    message.batch_size = batch_size;
    return message;
  }
  MessageKey key;
  double weight;
  std::int64_t batch_size;
};

}  // namespace

ValueExchange::ValueExchange(std::shared_ptr<const MessageValues> values, int num_microbatches)
    : values_(std::move(values)) {
  if (values_ == nullptr) return;
  sizes_.resize(as_index(num_microbatches) * as_index(values_->num_values()));
}

std::size_t& ValueExchange::size_of(const WiredRun& run, ValueId value) {
  return sizes_[as_index(run.microbatch()) * as_index(values_->num_values()) + as_index(value)];
}

Message ValueExchange::take_in(const WiredRun& run, std::vector<Message> messages,
                               std::vector<Message>& held) {
  const MessageKind kind = run.is_forward() ? MessageKind::kActivation : MessageKind::kGradient;
  if (messages.empty()) return {};
  const Head head(messages[run.neighbour()]);
  std::vector<Part> given(run.given().size());
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const WiredRead& read = run.reads()[i];
    const Head own(messages[i]);
    std::vector<Part> parts = take_apart(run, read, std::move(messages[i]));
    std::vector<Part> kept;
    for (std::size_t j = 0; j < parts.size(); ++j) {
      const auto& [value, position, is_kept] = read.carried[j];
      if (is_kept) kept.push_back(position < 0 ? std::move(parts[j]) : alias_of(parts[j]));
      if (position >= 0) given[as_index(position)] = std::move(parts[j]);
    }
    if (read.keeps >= 0) held[as_index(read.keeps)] = own.onto(message_of(std::move(kept), kind));
  }
  for (std::size_t i = 0; i < given.size() && !run.is_forward(); ++i) {
    const GivenValue& gradient = run.given()[i];
    if (gradient.read < 0) given[i].tensors.resize(size_of(run, gradient.value));
  }
  return head.onto(message_of(std::move(given), kind));
}

std::vector<Part> ValueExchange::take_apart(const WiredRun& run, const WiredRead& read,
                                            Message message) {
  if (values_ == nullptr) return {};
  std::optional<std::vector<Part>> parts;
  if (run.is_forward()) {
    parts = pipert::take_apart(std::move(message));
    if (parts.has_value() && parts->size() != read.carried.size()) parts.reset();
    for (std::size_t i = 0; parts.has_value() && i < parts->size(); ++i)
      size_of(run, read.carried[i].value) = (*parts)[i].tensors.size();
  } else {
    std::vector<std::size_t> sizes;
    for (const CarriedValue& carried : read.carried) sizes.push_back(size_of(run, carried.value));
    parts = cut(std::move(message.tensors), sizes);
  }
  if (parts.has_value()) return *std::move(parts);
  throw ValueError(concat("the ", to_string(read.input.key), ", from rank ", read.input.source,
                          ", carries something else than the values that stage ", run.stage(),
                          " expects: are the stages' specs the same on all ranks?"));
}

WriteWatch ValueExchange::watch(const WiredRun& run, const Message& given) const {
  WriteWatch watch;
  if (!run.is_forward()) return watch;
  std::size_t next = 0;
  for (std::size_t i = 0; i < run.given().size(); ++i) {
    for (const std::size_t end = next + num_given(run, i); next < end; ++next) {
      if (run.given()[i].is_shared) watch.add(run.given()[i].value, given.tensors[next]);
    }
  }
  return watch;
}

void ValueExchange::check(const WiredRun& run, const WriteWatch& watch) const {
  const auto written = watch.find_written();
  if (!written.has_value()) return;
  const ValueRoute& route = values_->value(*written);
  std::string others;
  for (const StageIndex reader : route.readers) {
    if (reader == values_->piece(run.stage())) continue;
    others += concat(others.empty() ? "" : ", ", reader);
  }
  throw ValueError(concat("stage ", values_->piece(run.stage()), " works in place on ", route.name,
                          " of stage ", route.maker, ", which stage ", others,
                          " reads too: expected a stage that changes a copy of it"));
}

void ValueExchange::hand_on(const WiredRun& run, Message result, std::vector<Message>& held) {
  if (run.writes().empty()) return;  // of the model's ends
  const Head head(result);
  std::vector<Part> parts = take_apart_result(run, std::move(result));
  std::vector<int> left = run.num_takers();
  for (const WiredWrite& write : run.writes()) {
    std::vector<Part> taken;
    for (const std::size_t position : write.positions) {
      const bool is_last = --left[position] == 0;
      taken.push_back(is_last ? std::move(parts[position]) : alias_of(parts[position]));
    }
    held[as_index(write.slot)] = head.onto(message_of(
        std::move(taken), run.is_forward() ? MessageKind::kActivation : MessageKind::kGradient));
  }
}

std::vector<Part> ValueExchange::take_apart_result(const WiredRun& run, Message result) {
  if (values_ == nullptr) return {};
  if (!run.is_forward()) {
    std::vector<std::size_t> sizes;
    for (const ValueId value : run.made()) sizes.push_back(size_of(run, value));
    auto parts = cut(std::move(result.tensors), sizes);
    if (!parts.has_value()) throw InternalError("a stage returned gradients of something else");
    return *std::move(parts);
  }
  const auto structure = result.structure;
  auto parts = pipert::take_apart(std::move(result));
  if (!parts.has_value() || parts->size() != run.made().size()) {
    std::string names;
    for (const ValueId value : run.made())
      names += concat(names.empty() ? "" : ", ", name_of(value));
    throw ValueError(concat("stage ", values_->piece(run.stage()), " must return a tuple of ",
                            run.made().size(), " (", names, "), got ",
                            describe_value(structure.get())));
  }
  check_differentiable(run, *parts);
  for (std::size_t i = 0; i < parts->size(); ++i)
    size_of(run, run.made()[i]) = (*parts)[i].tensors.size();
  return *std::move(parts);
}

void ValueExchange::check_differentiable(const WiredRun& run,
                                         const std::vector<Part>& parts) const {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const ValueRoute& route = values_->value(run.made()[i]);
    const auto& flags = parts[i].requires_grad;
    if (route.differentiable || std::find(flags.begin(), flags.end(), true) == flags.end())
      continue;
    throw ValueError(concat(route.name, " of stage ", route.maker,
                            " requires a gradient, but was declared with differentiable=False: no "
                            "gradient would come back for it"));
  }
}

std::size_t ValueExchange::num_given(const WiredRun& run, std::size_t position) const {
  const auto at = as_index(run.microbatch()) * as_index(values_->num_values());
  return sizes_[at + as_index(run.given()[position].value)];
}

const std::string& ValueExchange::name_of(ValueId value) const {
  return values_->value(value).name;
}

}  // namespace pipert
