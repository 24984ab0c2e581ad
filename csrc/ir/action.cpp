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
};

// In the order of ActionKind, so that a kind is its own subscript.
constexpr std::array<KindRow, kNumActionKinds> kKinds = {{
    {ActionKind::kForward, "F", true},
    {ActionKind::kBackward, "B", true},
    {ActionKind::kInputGrad, "I", true},
    {ActionKind::kWeightGrad, "W", true},
    {ActionKind::kSendForward, "SEND_F", true},
    {ActionKind::kRecvForward, "RECV_F", true},
    {ActionKind::kSendBackward, "SEND_B", true},
    {ActionKind::kRecvBackward, "RECV_B", true},
    {ActionKind::kUnshard, "UNSHARD", false},
    {ActionKind::kReshard, "RESHARD", false},
    {ActionKind::kReduceGrad, "REDUCE_GRAD", false},
    {ActionKind::kOverlap, "OVERLAP_F_B", false},
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

  std::int32_t number(std::string_view what) {
    if (!at_digit()) fail(concat("expected ", what, ", a number"));
    std::int64_t value = 0;
    while (at_digit()) {
      value = value * 10 + (rest_.front() - '0');
      if (value > kMaxIndex) fail(concat(what, " must be at most ", kMaxIndex));
      rest_.remove_prefix(1);
    }
    return static_cast<std::int32_t>(value);
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

Action read_single(Reader& reader) {
  Action action;
  action.stage = reader.number("the stage index");
  const Reader before_word = reader;
  const auto kind = find_kind(reader.word());
  if (!kind || *kind == ActionKind::kOverlap) {
    before_word.fail(
        "expected F, B, I, W, SEND_F, RECV_F, SEND_B, RECV_B, UNSHARD, RESHARD or REDUCE_GRAD");
  }
  action.kind = *kind;
  const bool wanted = row_of(*kind).has_microbatch;
  if (wanted) action.microbatch = reader.number("the microbatch index");
  if (!wanted && reader.at_digit()) reader.fail(concat(kind_name(*kind), " takes no microbatch"));
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
  action.kind = ActionKind::kOverlap;
  action.paired_kind = paired.kind;
  action.paired_stage = paired.stage;
  action.paired_microbatch = paired.microbatch;
  return action;
}

void append_single(std::string& out, ActionKind kind, StageIndex stage, Microbatch microbatch) {
  out.append(std::to_string(stage)).append(kind_name(kind));
  if (microbatch != kNoMicrobatch) out.append(std::to_string(microbatch));
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

bool has_microbatch(ActionKind kind) {
  return row_of(kind).has_microbatch || kind == ActionKind::kOverlap;
}

bool is_compute(ActionKind kind) {
  switch (kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kOverlap:
      return true;
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
      return false;
  }
  return false;
}

std::string to_string(const Action& action) {
  std::string out;
  if (action.kind != ActionKind::kOverlap) {
    append_single(out, action.kind, action.stage, action.microbatch);
    return out;
  }
  out.append("(");
  append_single(out, ActionKind::kForward, action.stage, action.microbatch);
  out.append(";");
  append_single(out, action.paired_kind, action.paired_stage, action.paired_microbatch);
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
