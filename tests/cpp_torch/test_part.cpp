// Parts of messages: taken apart and put together again they are the message that they were.
#include "runtime/part.h"

#include <ATen/ops/full.h>

#include <cstdio>
#include <utility>

#include "check.h"

namespace pipert {
namespace {

at::Tensor tensor(double value) { return at::full({2}, value); }

Structure of(Structure::Kind kind, std::vector<Structure> children = {}) {
  Structure structure;
  structure.kind = kind;
  structure.children = std::move(children);
  return structure;
}

// (tensor 0, None, {"": [tensor 1, tensor 2]}, tensor 3), of which 0 and 2 need gradients.
Message nested() {
  const Structure list = of(Structure::Kind::kList, {Structure(), Structure()});
  const Structure dict = of(Structure::Kind::kDict, {of(Structure::Kind::kString), list});
  Message message;
  message.structure = std::make_shared<const Structure>(
      of(Structure::Kind::kTuple, {Structure(), of(Structure::Kind::kNone), dict, Structure()}));
  for (int i = 0; i < 4; ++i) message.tensors.push_back(tensor(i));
  message.requires_grad = {true, false, true, false};
  return message;
}

void test_parts_are_the_elements_of_the_tuple() {
  const std::vector<Part> parts = take_apart(nested());
  CHECK(parts.size() == 4);
  CHECK(parts[0].structure == nullptr && parts[3].structure == nullptr);
  CHECK(parts[1].structure->kind == Structure::Kind::kNone && parts[1].tensors.empty());
  CHECK(parts[2].structure->kind == Structure::Kind::kDict && parts[2].tensors.size() == 2);
  CHECK((parts[2].requires_grad == std::vector<bool>{false, true}));
  CHECK(parts[2].tensors[1].equal(tensor(2)));
}

void test_put_together_they_are_the_message() {
  const Message expected = nested();
  const Message message = put_together(take_apart(expected));
  CHECK(*message.structure == *expected.structure);
  CHECK(message.requires_grad == expected.requires_grad);
  CHECK(message.tensors.size() == expected.tensors.size());
  for (std::size_t i = 0; i < message.tensors.size(); ++i)
    CHECK(message.tensors[i].is_same(expected.tensors[i]));
}

void test_an_empty_tuple_has_no_parts() {
  const Message message = put_together({});
  CHECK(message.structure->kind == Structure::Kind::kTuple && message.tensors.empty());
  CHECK(take_apart(message).empty());
}

void test_gradients_are_cut_by_size() {
  const std::vector<Part> parts = cut({tensor(0), at::Tensor(), tensor(2)}, {0, 2, 1});
  CHECK(parts.size() == 3);
  CHECK(parts[0].tensors.empty());
  CHECK(parts[1].tensors[0].equal(tensor(0)) && !parts[1].tensors[1].defined());
  CHECK(parts[2].tensors.size() == 1 && parts[2].tensors[0].equal(tensor(2)));
}

void test_an_alias_shares_memory_and_no_version() {
  const Part part = std::move(take_apart(nested())[2]);
  const Part alias = alias_of(part);
  CHECK(alias.structure == part.structure && alias.requires_grad == part.requires_grad);
  const auto version = part.tensors[0]._version();
  const auto of_alias = alias.tensors[0]._version();
  alias.tensors[0].zero_();
  CHECK(part.tensors[0].equal(tensor(0)));
  CHECK(part.tensors[0]._version() == version && alias.tensors[0]._version() != of_alias);
}

void test_values_are_described() {
  const Message message = nested();
  CHECK(describe_value(nullptr) == "a tensor");
  CHECK(describe_value(message.structure.get()) == "a tuple of 4");
  CHECK(describe_value(&message.structure->children[1]) == "None");
  CHECK(describe_value(&message.structure->children[2]) == "a dict of 1");
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::test_parts_are_the_elements_of_the_tuple();
  pipert::test_put_together_they_are_the_message();
  pipert::test_an_empty_tuple_has_no_parts();
  pipert::test_gradients_are_cut_by_size();
  pipert::test_an_alias_shares_memory_and_no_version();
  pipert::test_values_are_described();
  std::puts("ok");
}
