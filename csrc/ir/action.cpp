#include "ir/action.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>

#include "base/error.h"
#include "base/quote.h"
#include "base/suggest.h"

namespace pipert {
namespace {

struct KindRow {
  ActionKind kind;
  std::string_view name;
  bool has_microbatch;
  bool has_version;
};

// In the order of ActionKind, so that a kind is its own subscript.
constexpr std::array<KindRow, kNumActionKinds> kKinds = {{
    {ActionKind::kForward, "F", true, true},
    {ActionKind::kBackward, "B", true, true},
    {ActionKind::kInputGrad, "I", true, true},
    {ActionKind::kWeightGrad, "W", true, true},
    {ActionKind::kSendForward, "SEND_F", true, false},
    {ActionKind::kRecvForward, "RECV_F", true, false},
    {ActionKind::kSendBackward, "SEND_B", true, false},
    {ActionKind::kRecvBackward, "RECV_B", true, false},
    {ActionKind::kUnshard, "UNSHARD", false, false},
    {ActionKind::kReshard, "RESHARD", false, false},
    {ActionKind::kReduceGrad, "REDUCE_GRAD", false, false},
    {ActionKind::kOverlap, "OVERLAP_F_B", true, true},
    {ActionKind::kRecompute, "R", true, true},
    {ActionKind::kOffload, "OFFLOAD", true, false},
    {ActionKind::kReload, "RELOAD", true, false},
    {ActionKind::kUpdate, "UPDATE", false, true},
}};

const KindRow& row_of(ActionKind kind) { return kKinds[static_cast<std::size_t>(kind)]; }

std::optional<ActionKind> find_kind(std::string_view word) {
  for (const KindRow& row : kKinds) {
    if (row.name == word) return row.kind;
  }
  return std::nullopt;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) { return (c >= 'A' && c <= 'Z') || c == '_'; }

// One text, eaten from the front. `whole` is what an error shows.
class Reader {
 public:
  explicit Reader(std::string_view text) : whole_(text), rest_(text) {}

  bool done() const { return rest_.empty(); }
  bool at_digit() const { return !rest_.empty() && is_digit(rest_.front()); }

  std::int32_t number(std::string_view what, std::int32_t most = kMaxIndex) {
    if (!at_digit()) fail(concat("expected ", what, ", a number"));
    std::int64_t value = 0;
    while (at_digit()) {
      value = value * 10 + (rest_.front() - '0');
      if (value > most) fail(concat(what, " must be at most ", most));
      rest_.remove_prefix(1);
    }
    return static_cast<std::int32_t>(value);
  }

  // Whether the next letter was `letter`; then it is eaten.
  bool skip(char letter) {
    if (!rest_.starts_with(letter)) return false;
    rest_.remove_prefix(1);
    return true;
  }

  std::string_view word() {
    std::size_t length = 0;
    while (length < rest_.size() && is_word(rest_[length])) ++length;
    const std::string_view word = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return word;
  }

  void expect(std::string_view token) {
    if (!rest_.starts_with(token)) fail(concat("expected ", quote(token)));
    rest_.remove_prefix(token.size());
  }

  [[noreturn]] void fail(const std::string& reason) const {
    throw ValueError(concat("bad action ", quote(whole_), ": ", reason, " at ",
                            rest_.empty() ? std::string("its end") : quote(rest_)));
  }

 private:
  std::string_view whole_;
  std::string_view rest_;
};

void read_slice(Reader& reader, Action& action) {
  const Reader before = reader;
  if (!reader.skip('s')) return;
  if (!has_microbatch(action.kind)) before.fail(concat(kind_name(action.kind), " takes no slice"));
  action.slice = static_cast<Slice>(reader.number("the slice", kMaxSlice));
}

void read_version(Reader& reader, Action& action) {
  const Reader before = reader;
  const bool is_update = action.kind == ActionKind::kUpdate;
  if (!reader.skip('v')) {
    if (is_update) before.fail("expected v and the version that is made");
    return;
  }
  if (!has_version(action.kind))
    before.fail(concat(kind_name(action.kind), " takes no weight version"));
  const Reader before_number = reader;
  action.version = reader.number("the weight version");
  if (is_update && action.version == 0)
    before_number.fail("an update makes version 1 or a later one");
}

Action read_single(Reader& reader) {
  Action action;
  action.stage = reader.number("the stage index");
  const Reader before_word = reader;
  const auto kind = find_kind(reader.word());
  if (!kind || *kind == ActionKind::kOverlap) {
    before_word.fail(
        "expected F, B, I, W, R, SEND_F, RECV_F, SEND_B, RECV_B, OFFLOAD, RELOAD, UNSHARD, "
        "RESHARD, REDUCE_GRAD or UPDATE");
  }
  action.kind = *kind;
  const bool wanted = has_microbatch(*kind);
  if (wanted) action.microbatch = reader.number("the microbatch index");
  if (!wanted && reader.at_digit()) reader.fail(concat(kind_name(*kind), " takes no microbatch"));
  read_slice(reader, action);
  read_version(reader, action);
  return action;
}

Action read_overlap(Reader& reader) {
  reader.expect("(");
  const Reader before_forward = reader;
  Action action = read_single(reader);
  if (action.kind != ActionKind::kForward) before_forward.fail("expected a forward first");
  reader.expect(";");
  const Reader before_backward = reader;
  const Action paired = read_single(reader);
  if (paired.kind != ActionKind::kBackward && paired.kind != ActionKind::kInputGrad) {
    before_backward.fail("expected a backward (B or I) second");
  }
  reader.expect(")OVERLAP_F_B");
  return overlap(action, paired);
}

void append_single(std::string& out, const Action& action) {
  out.append(std::to_string(action.stage)).append(kind_name(action.kind));
  if (action.microbatch != kNoMicrobatch) out.append(std::to_string(action.microbatch));
  if (action.slice != kWholeSequence) out.append("s").append(std::to_string(action.slice));
  if (action.version != 0) out.append("v").append(std::to_string(action.version));
}

}  // namespace

std::string_view kind_name(ActionKind kind) { return row_of(kind).name; }

ActionKind parse_kind(std::string_view name) {
  if (const auto kind = find_kind(name)) return *kind;
  std::array<std::string_view, kNumActionKinds> known;
  std::transform(kKinds.begin(), kKinds.end(), known.begin(),
                 [](const KindRow& row) { return row.name; });
  throw ValueError(unknown_name("action kind", name, known));
}

bool has_microbatch(ActionKind kind) { return row_of(kind).has_microbatch; }

bool has_version(ActionKind kind) { return row_of(kind).has_version; }

Action as_kind(const Action& action, ActionKind kind) {
  return {.kind = kind,
          .slice = action.slice,
          .stage = action.stage,
          .microbatch = action.microbatch,
          .version = has_version(kind) ? action.version : 0};
}

bool is_compute(ActionKind kind) {
  switch (kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kOverlap:
    case ActionKind::kRecompute:
      return true;
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kOffload:
    case ActionKind::kReload:
    case ActionKind::kUpdate:
      return false;
  }
  return false;
}

std::optional<MessageKind> result_kind(ActionKind kind) {
  switch (kind) {
    case ActionKind::kForward:
      return MessageKind::kActivation;
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
      return MessageKind::kGradient;
    case ActionKind::kWeightGrad:
    case ActionKind::kRecompute:
    case ActionKind::kOffload:
    case ActionKind::kReload:
    case ActionKind::kOverlap:
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kUpdate:
      return std::nullopt;
  }
  return std::nullopt;
}

Action overlap(const Action& forward, const Action& backward) {
  Action pair = as_kind(forward, ActionKind::kOverlap);
  pair.paired_kind = backward.kind;
  pair.paired_slice = backward.slice;
  pair.paired_stage = backward.stage;
  pair.paired_microbatch = backward.microbatch;
  pair.paired_version = backward.version;
  return pair;
}

Action overlapped_forward(const Action& pair) { return as_kind(pair, ActionKind::kForward); }

Action overlapped_backward(const Action& pair) {
  return {.kind = pair.paired_kind,
          .slice = pair.paired_slice,
          .stage = pair.paired_stage,
          .microbatch = pair.paired_microbatch,
          .version = pair.paired_version};
}

std::string to_string(const Action& action) {
  std::string out;
  if (action.kind != ActionKind::kOverlap) {
    append_single(out, action);
    return out;
  }
  out.append("(");
  append_single(out, overlapped_forward(action));
  out.append(";");
  append_single(out, overlapped_backward(action));
  out.append(")").append(kind_name(action.kind));
  return out;
}

Action parse_action(std::string_view text) {
  Reader reader(text);
  const Action action = text.starts_with('(') ? read_overlap(reader) : read_single(reader);
  if (!reader.done()) reader.fail("expected nothing more");
  return action;
}

}  // namespace pipert
