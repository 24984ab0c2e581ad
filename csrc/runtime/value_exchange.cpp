#include "runtime/value_exchange.h"

#include <algorithm>
#include <iterator>
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

// Of a rehearsal: the neighbour's message, and each to where it is kept.
Message pass_on(const WiredRun& run, std::vector<Message> messages, std::vector<Message>& held) {
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const int keeps = run.reads()[i].keeps;
    if (keeps >= 0) held[as_index(keeps)] = messages[i];
  }
  return std::move(messages[run.neighbour()]);
}

}  // namespace

ValueExchange::ValueExchange(std::shared_ptr<const MessageValues> values, int num_microbatches)
    : values_(std::move(values)) {
  if (values_ == nullptr) return;
  sizes_.resize(as_index(num_microbatches) * as_index(values_->num_values()));
}

std::size_t& ValueExchange::size_of(const WiredRun& run, ValueId value) {
  return sizes_[as_index(run.microbatch()) * as_index(values_->num_values()) + as_index(value)];
}

bool ValueExchange::fits(const WiredRun& run, const std::vector<ValueId>& values,
                         const Message& message) {
  if (!run.is_forward()) {
    std::size_t size = 0;
    for (const ValueId value : values) size += size_of(run, value);
    return size == message.tensors.size();
  }
  const Structure* structure = message.structure.get();
  if (structure == nullptr || structure->kind != Structure::Kind::kTuple) return false;
  if (structure->children.size() != values.size()) return false;
  for (std::size_t i = 0; i < values.size(); ++i)
    size_of(run, values[i]) = num_tensors(structure->children[i]);
  return true;
}

Message ValueExchange::take_in(const WiredRun& run, std::vector<Message> messages,
                               std::vector<Message>& held) {
  if (messages.empty()) return {};
  if (values_ == nullptr) return pass_on(run, std::move(messages), held);
  for (std::size_t i = 0; i < messages.size(); ++i) check_read(run, run.reads()[i], messages[i]);
  if (run.takes_whole()) return std::move(messages.front());
  const MessageKind kind = run.is_forward() ? MessageKind::kActivation : MessageKind::kGradient;
  const Head head(messages[run.neighbour()]);
  std::vector<Part> given(run.given().size());
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const WiredRead& read = run.reads()[i];
    const Head own(messages[i]);
    std::vector<Part> parts = take_apart(run, read.values, std::move(messages[i]));
    std::vector<Part> kept;
    for (std::size_t j = 0; j < parts.size(); ++j) {
      const auto& [position, is_kept] = read.carried[j];
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

void ValueExchange::check_read(const WiredRun& run, const WiredRead& read, const Message& message) {
  if (fits(run, read.values, message)) return;
  throw ValueError(concat("the ", to_string(read.input.key), ", from rank ", read.input.source,
                          ", carries something else than the values that stage ", run.stage(),
                          " expects: are the stages' specs the same on all ranks?"));
}

std::vector<Part> ValueExchange::take_apart(const WiredRun& run, const std::vector<ValueId>& values,
                                            Message message) {
  if (run.is_forward()) return pipert::take_apart(std::move(message));
  std::vector<std::size_t> sizes;
  for (const ValueId value : values) sizes.push_back(size_of(run, value));
  return cut(std::move(message.tensors), sizes);
}

WriteWatch ValueExchange::watch(const WiredRun& run, Message& given) const {
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
  if (values_ == nullptr) {
    for (const WiredWrite& write : run.writes()) held[as_index(write.slot)] = result;
    return;
  }
  check_result(run, result);
  if (run.gives_whole()) {
    held[as_index(run.writes().front().slot)] = std::move(result);
    return;
  }
  const MessageKind kind = run.is_forward() ? MessageKind::kActivation : MessageKind::kGradient;
  const Head head(result);
  std::vector<Part> parts = take_apart(run, run.made(), std::move(result));
  std::vector<int> left = run.num_takers();
  for (const WiredWrite& write : run.writes()) {
    std::vector<Part> taken;
    for (const std::size_t position : write.positions) {
      const bool is_last = --left[position] == 0;
      taken.push_back(is_last ? std::move(parts[position]) : alias_of(parts[position]));
    }
    held[as_index(write.slot)] = head.onto(message_of(std::move(taken), kind));
  }
}

void ValueExchange::check_result(const WiredRun& run, const Message& result) {
  if (fits(run, run.made(), result)) {
    if (run.is_forward()) check_differentiable(run, result);
    return;
  }
  if (!run.is_forward()) throw InternalError("a stage returned gradients of something else");
  std::string names;
  for (const ValueId value : run.made()) names += concat(names.empty() ? "" : ", ", name_of(value));
  throw ValueError(concat("stage ", values_->piece(run.stage()), " must return a tuple of ",
                          run.made().size(), " (", names, "), got ",
                          describe_value(result.structure.get())));
}

void ValueExchange::check_differentiable(const WiredRun& run, const Message& result) {
  auto next = result.requires_grad.begin();
  for (const ValueId value : run.made()) {
    const auto end = next + static_cast<std::ptrdiff_t>(size_of(run, value));
    const ValueRoute& route = values_->value(value);
    if (!route.differentiable && std::find(next, end, true) != end) {
      throw ValueError(concat(route.name, " of stage ", route.maker,
                              " requires a gradient, but was declared with differentiable=False: "
                              "no gradient would come back for it"));
    }
    next = end;
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
