// Which values a message carries, and what becomes of them on a rank: each goes where the routes
// say, as a star to its readers, as a relay back.
#include "runtime/value_exchange.h"

#include <ATen/ops/full.h>
#include <c10/core/InferenceMode.h>

#include <cstdio>
#include <memory>
#include <utility>

#include "base/error.h"
#include "check.h"

namespace pipert {
namespace {

using Ids = std::vector<ValueId>;
constexpr MessageKind kActivation = MessageKind::kActivation;
constexpr MessageKind kGradient = MessageKind::kGradient;

enum : ValueId { kSkip, kMask, kHidden0, kHidden1, kHidden2 };

// Four stages: `skip` of stage 0 is read by 1, 2 and 3, `mask` by 2 and 3, and no gradient comes
// back for it; hidden_i by the next one. Stage 2 takes its inputs in another order than they come.
Routes routes() {
  return {.values = {{0, {1, 2, 3}, true, "skip"},
                     {0, {2, 3}, false, "mask"},
                     {0, {1}, true, "hidden_0"},
                     {1, {2}, true, "hidden_1"},
                     {2, {3}, true, "hidden_2"}},
          .stages = {{{}, {kHidden0, kSkip, kMask}},
                     {{kSkip, kHidden0}, {kHidden1}},
                     {{kHidden1, kMask, kSkip}, {kHidden2}},
                     {{kSkip, kMask, kHidden2}, {}}}};
}

// Stages 0 and 2 on rank 0, 1 and 3 on rank 1; likewise of a second copy.
std::shared_ptr<const MessageValues> looped(int num_copies = 1) {
  const std::vector<Rank> ranks =
      num_copies == 1 ? std::vector<Rank>{0, 1, 0, 1} : std::vector<Rank>{0, 1, 0, 1, 1, 0, 1, 0};
  return std::make_shared<const MessageValues>(routes(), Placement(2, ranks, num_copies));
}

void test_a_rank_is_sent_each_value_once() {
  const auto values = looped();
  CHECK((values->sent(kActivation, 0, 0) == Ids{kSkip, kMask}));
  CHECK((values->sent(kActivation, 0, 1) == Ids{kSkip, kMask, kHidden0}));
  CHECK((values->read(kActivation, 0, 1) == Ids{kSkip, kHidden0}));
  CHECK((values->kept(kActivation, 0, 1) == Ids{kSkip, kMask}));  // for stage 3
  CHECK((values->brought(kActivation, 0, 1) == Ids{kSkip, kMask, kHidden0}));
  CHECK(values->kept(kActivation, 0, 2).empty());
}

void test_gradients_go_from_reader_to_reader() {
  const auto values = looped();
  CHECK((values->read(kGradient, 3, 2) == Ids{kSkip, kHidden2}));
  CHECK((values->read(kGradient, 2, 1) == Ids{kSkip, kHidden1}));
  CHECK((values->read(kGradient, 1, 0) == Ids{kSkip, kHidden0}));
  CHECK(values->read(kGradient, 3, 0).empty());  // `mask` has none
}

void test_a_second_copy_of_the_model_has_the_same_routes() {
  const auto values = looped(2);
  CHECK((values->sent(kActivation, 4, 1) == Ids{kSkip, kMask}));
  CHECK((values->read(kActivation, 4, 5) == Ids{kSkip, kHidden0}));
  CHECK((values->read(kGradient, 7, 6) == Ids{kSkip, kHidden2}));
  CHECK(values->read(kActivation, 0, 5).empty());
}

void test_who_else_reads_a_value_is_known() {
  const auto values = looped();
  CHECK((values->are_read_elsewhere(2) == std::vector<bool>{false, true, true}));
  CHECK(values->are_read_elsewhere(0).empty());
  CHECK(values->is_read_nearby(kSkip, 1) && !values->is_read_nearby(kSkip, 2));
}

// --- one rank at work ------------------------------------------------------------------------

at::Tensor tensor(double value) { return at::full({1}, value); }

// A message of stage `maker`: a tuple of these numbers as tensors, or as gradients.
Message message(MessageKind kind, StageIndex maker, const std::vector<double>& numbers) {
  std::vector<Part> parts;
  for (const double number : numbers) {
    parts.push_back({.tensors = {tensor(number)}, .requires_grad = {false}, .structure = nullptr});
  }
  Message made = put_together(std::move(parts));
  if (kind == kGradient) made.structure = nullptr;
  made.key = {kind, maker, 0};
  made.weight = maker + 0.5;
  return made;
}

std::vector<double> numbers(const Message& message) {
  std::vector<double> numbers;
  for (const at::Tensor& tensor : message.tensors)
    numbers.push_back(tensor.defined() ? tensor.item<double>() : -1.0);
  return numbers;
}

// Where slot `slot` brings the result of stage `maker` from, on the rank itself.
Input local(MessageKind kind, StageIndex maker, int slot) {
  Input input;
  input.key = {kind, maker, 0};
  input.slot = slot;
  return input;
}

// Stage 1 and 3 of rank 1: what stage 0 made comes with one message, of which stage 3's part is
// kept in slot 7.
struct Rank1 {
  std::shared_ptr<const MessageValues> values = looped();
  ValueExchange exchange{values, 1};
  std::vector<Message> held{8};

  WiredRun forward(StageIndex stage) const {
    WiredRun run({kActivation, stage, 0}, values.get());
    if (stage == 1) {
      run.add_read(local(kActivation, 0, 0), 7, values.get());
      run.add_write(1, 0, values.get());
    } else {
      run.add_read(local(kActivation, 2, 2), -1, values.get());
      run.add_read(local(kActivation, 0, 7), -1, values.get());
    }
    run.finish();
    return run;
  }
  WiredRun backward(StageIndex stage) const {
    WiredRun run({kGradient, stage, 0}, values.get());
    if (stage == 1) run.add_read(local(kGradient, 2, 3), -1, values.get());
    run.add_write(4, 0, values.get());
    run.finish();
    return run;
  }
  Message take_in(const WiredRun& run, std::vector<Message> messages) {
    return exchange.take_in(run, std::move(messages), held);
  }
};

void test_what_later_stages_read_is_kept_for_them() {
  Rank1 rank;
  const Message given = rank.take_in(rank.forward(1), {message(kActivation, 0, {1, 2, 3})});
  CHECK((numbers(given) == std::vector<double>{1, 3}));
  CHECK(given.weight == 0.5);
  CHECK((numbers(rank.held[7]) == std::vector<double>{1, 2}));
  const Message last = rank.take_in(rank.forward(3), {message(kActivation, 2, {5}), rank.held[7]});
  CHECK((numbers(last) == std::vector<double>{1, 2, 5}));
  CHECK(last.weight == 2.5);  // the neighbour's
}

void test_the_relay_comes_behind_the_gradients_of_outputs() {
  Rank1 rank;
  rank.take_in(rank.forward(1), {message(kActivation, 0, {1, 2, 3})});
  rank.exchange.hand_on(rank.forward(1), message(kActivation, 1, {4}), rank.held);
  CHECK((numbers(rank.held[1]) == std::vector<double>{4}));
  const WiredRun run = rank.backward(1);
  const Message given = rank.take_in(run, {message(kGradient, 2, {10, 20})});
  // Of hidden_1, then of skip and hidden_0, for which nobody else has one.
  CHECK((numbers(given) == std::vector<double>{20, 10, -1}));
  rank.exchange.hand_on(run, message(kGradient, 1, {30, 40}), rank.held);
  CHECK((numbers(rank.held[4]) == std::vector<double>{30, 40}));
}

void test_one_message_that_fits_passes_as_it_is() {
  const auto values = std::make_shared<const MessageValues>(
      Routes{.values = {{0, {1}, true, "a"}, {0, {1}, true, "b"}},
             .stages = {{{}, {0, 1}}, {{0, 1}, {}}}},
      Placement(1, {0, 0}));
  ValueExchange exchange(values, 1);
  std::vector<Message> held(1);
  WiredRun maker({kActivation, 0, 0}, values.get());
  maker.add_write(0, 0, values.get());
  maker.finish();
  WiredRun reader({kActivation, 1, 0}, values.get());
  reader.add_read(local(kActivation, 0, 0), -1, values.get());
  reader.finish();
  CHECK(maker.gives_whole() && reader.takes_whole());
  const Message made = message(kActivation, 0, {1, 2});
  exchange.hand_on(maker, made, held);
  const Message given = exchange.take_in(reader, {held[0]}, held);
  CHECK(given.structure == made.structure && given.tensors[1].is_same(made.tensors[1]));
  CHECK(exchange.num_given(reader, 1) == 1);
  CHECK(!Rank1().forward(1).takes_whole() && !Rank1().forward(3).takes_whole());
}

void test_a_message_of_something_else_is_refused() {
  Rank1 rank;
  const WiredRun run = rank.forward(1);
  CHECK_THROWS(rank.take_in(run, {message(kActivation, 0, {1, 2})}), ValueError);
  Message one = message(kActivation, 0, {1, 2, 3});
  one.structure = nullptr;
  CHECK_THROWS(rank.take_in(run, {one}), ValueError);
  CHECK_THROWS(rank.exchange.hand_on(run, message(kActivation, 1, {1, 2}), rank.held), ValueError);
  rank.take_in(run, {message(kActivation, 0, {1, 2, 3})});
  rank.exchange.hand_on(run, message(kActivation, 1, {4}), rank.held);
  CHECK_THROWS(rank.take_in(rank.backward(1), {message(kGradient, 2, {10})}), ValueError);
}

void test_writes_to_what_others_read_are_seen() {
  for (const bool inference : {false, true}) {
    const c10::InferenceMode mode(inference);
    Rank1 rank;
    const WiredRun run = rank.forward(1);
    Message given = rank.take_in(run, {message(kActivation, 0, {1, 2, 3})});
    const WriteWatch watch = rank.exchange.watch(run, given);
    given.tensors[1].zero_();  // hidden_0, which nobody else reads
    rank.exchange.check(run, watch);
    given.tensors[0].view({1}).zero_();
    CHECK_THROWS(rank.exchange.check(run, watch), ValueError);
    CHECK((numbers(rank.held[7]) == std::vector<double>{0, 2}));
  }
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::test_a_rank_is_sent_each_value_once();
  pipert::test_gradients_go_from_reader_to_reader();
  pipert::test_a_second_copy_of_the_model_has_the_same_routes();
  pipert::test_who_else_reads_a_value_is_known();
  pipert::test_what_later_stages_read_is_kept_for_them();
  pipert::test_the_relay_comes_behind_the_gradients_of_outputs();
  pipert::test_one_message_that_fits_passes_as_it_is();
  pipert::test_a_message_of_something_else_is_refused();
  pipert::test_writes_to_what_others_read_are_seen();
  std::puts("ok");
}
