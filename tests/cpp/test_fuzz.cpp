// The parsers under mutated texts: what they take is printed and read back, everything else is a
// ValueError; no byte makes them crash, hang or allocate without end. Seeds are fixed, so a failure
// comes again; run it under the sanitizers.

#include <array>
#include <cstdio>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json_reader.h"
#include "base/structure.h"
#include "base/utf8.h"
#include "check.h"
#include "ir/json.h"
#include "ir/zero_bubble.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

constexpr int kRounds = 40'000;
constexpr std::size_t kLongest = 4'096;  // beyond this a text grows no more

// Makes texts near good ones: bytes and whole words changed, dropped, doubled and moved.
class Mutator {
 public:
  Mutator(unsigned seed, std::vector<std::string> good, std::vector<std::string> words)
      : random_(seed), good_(std::move(good)), words_(std::move(words)) {}

  std::string next() {
    std::string text = good_[below(good_.size())];
    for (std::size_t left = 1 + below(4); left > 0; --left) mutate(text);
    return text;
  }

 private:
  std::size_t below(std::size_t end) {
    return std::uniform_int_distribution<std::size_t>(0, end - 1)(random_);
  }

  void mutate(std::string& text) {
    const std::size_t at = below(text.size() + 1);
    const std::size_t length = std::min(below(8), text.size() - at);
    switch (below(7)) {
      case 0:  // one bit
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 1:  // one byte
        if (at < text.size()) text[at] = static_cast<char>(below(256));
        break;
      case 2:
        text.erase(at, length);
        break;
      case 3:
        if (text.size() < kLongest) text.insert(at, text.substr(at, length));
        break;
      case 4:
        if (text.size() < kLongest) text.insert(at, words_[below(words_.size())]);
        break;
      case 5:
        text.replace(at, length, words_[below(words_.size())]);
        break;
      default:  // the end of one, then the end of another
        text = text.substr(0, at) + good_[below(good_.size())].substr(0, kLongest / 8);
        break;
    }
  }

  std::mt19937 random_;
  std::vector<std::string> good_;
  std::vector<std::string> words_;
};

// Feeds `parse`, which checks what it takes, and counts what it took. Both must happen, else the
// texts are of no use.
void fuzz(std::string_view name, Mutator mutator,
          const std::function<void(std::string_view)>& parse) {
  int taken = 0;
  for (int round = 0; round < kRounds; ++round) {
    try {
      parse(mutator.next());
      ++taken;
    } catch (const ValueError& error) {
      CHECK(is_utf8(error.what()));
      CHECK(std::string_view(error.what()).size() < 2'000);
    }
  }
  std::printf("%.*s: %d of %d texts taken\n", static_cast<int>(name.size()), name.data(), taken,
              kRounds);
  CHECK(taken > kRounds / 100);
  CHECK(taken < kRounds);
}

const std::vector<std::string> kWords = {"0",
                                         "1",
                                         "7",
                                         "999999999",
                                         "1000000000",
                                         "99999999999999999999",
                                         "-1",
                                         "1.5",
                                         "1e9",
                                         "F",
                                         "B",
                                         "I",
                                         "W",
                                         "R",
                                         "OFFLOAD",
                                         "RELOAD",
                                         "UPDATE",
                                         "SEND_F",
                                         "RECV_B",
                                         "UNSHARD",
                                         "OVERLAP_F_B",
                                         "(",
                                         ";",
                                         ")",
                                         "s",
                                         "s9999",
                                         "v",
                                         "v1",
                                         ",",
                                         "\n",
                                         "\r",
                                         " ",
                                         "\t",
                                         "\"",
                                         "\\",
                                         "\\u0000",
                                         "\\ud83d",
                                         "\\ude00",
                                         "{",
                                         "}",
                                         "[",
                                         "]",
                                         "[[[[[[[[",
                                         ":",
                                         "null",
                                         "true",
                                         "\"name\"",
                                         "\"actions\"",
                                         "\"placement\"",
                                         "\"version\"",
                                         std::string(1, '\0'),
                                         "\xff",
                                         "\xc3\xa9",
                                         "\xf0\x9f\x98\x80",
                                         "\xed\xa0\x80"};

// Small schedules of every kind, and one with all words of the text form.
std::vector<Schedule> seeds() {
  std::vector<Schedule> result;
  for (const std::string_view name : schedule_names()) {
    result.push_back(build_schedule(name, {.num_ranks = 2, .num_microbatches = 4, .options = {}}));
  }
  result.push_back(
      parse_csv("0UNSHARD,0F0s0,0F0s1,0SEND_F0s0,(0F1s0v3;0B0s1)OVERLAP_F_B,0OFFLOAD0s0,0RELOAD0s0,"
                "0R0s0,0I0s0,0W0s0,0REDUCE_GRAD,0UPDATEv1,0RESHARD\n1RECV_F0s0,1F0s0,1SEND_B0s0\n",
                "n\xc3\xa4me \"\\\n\t"));
  return result;
}

std::vector<std::string> printed(const std::function<std::string(const Schedule&)>& print) {
  std::vector<std::string> texts;
  for (const Schedule& schedule : seeds()) texts.push_back(print(schedule));
  return texts;
}

void actions() {
  std::vector<std::string> good;
  for (const Schedule& schedule : seeds()) {
    for (const auto& rank : schedule.ranks) {
      for (const Action& action : rank) good.push_back(to_string(action));
    }
  }
  fuzz("parse_action", Mutator(1, good, kWords), [](std::string_view text) {
    const Action action = parse_action(text);
    CHECK(parse_action(to_string(action)) == action);
  });
}

void csv() {
  const auto good = printed([](const Schedule& schedule) { return to_csv(schedule); });
  fuzz("parse_csv", Mutator(2, good, kWords), [](std::string_view text) {
    const Schedule schedule = parse_csv(text);
    CHECK(parse_csv(to_csv(schedule)) == schedule);
  });
}

void json() {
  fuzz("parse_json", Mutator(3, printed(to_json), kWords), [](std::string_view text) {
    const Schedule schedule = parse_json(text);
    const std::string again = to_json(schedule);
    CHECK(parse_json(again) == schedule);
    CHECK(parse_json(again).name == schedule.name);
    CHECK(to_json(parse_json(again)) == again);
  });
}

void zero_bubble() {
  const std::vector<std::string> good = {
      "f0 f1 b0 w0 b1 w1\nf0 b0 f1 b1 w0 w1\n", "F0 BW0\nF0 BW0\n",
      "f0 sf0 f1 F0 B0 rb0 b0 W0 w0\nrf0 f0 F0 B0 W0 b0 w0 pv0\n", "f0 rpv0 r0 b0\n"};
  fuzz("parse_zero_bubble", Mutator(4, good, {"f", "F0", "b1", "BW2", " ", "\n", "pv0", "s3", "9"}),
       [](std::string_view text) {
         const Schedule schedule = parse_zero_bubble(text);
         CHECK(parse_json(to_json(schedule)) == schedule);
         CHECK(schedule.num_ranks() == schedule.placement.num_ranks());
       });
}

void structures() {
  Structure dict{.kind = Structure::Kind::kDict, .text = {}, .children = {}};
  dict.children.push_back({.kind = Structure::Kind::kString, .text = "key", .children = {}});
  dict.children.push_back(
      {.kind = Structure::Kind::kInt, .integer = 7, .text = {}, .children = {}});
  Structure nested{.kind = Structure::Kind::kTensor, .text = {}, .children = {}};
  for (int depth = 0; depth < 90; ++depth) {
    nested = {.kind = Structure::Kind::kList, .text = {}, .children = {nested}};
  }
  Structure all{.kind = Structure::Kind::kTuple, .text = {}, .children = {dict, nested, dict}};
  std::vector<std::string> good(2);
  encode(dict, good[0]);
  encode(all, good[1]);
  const std::string zeros(4, '\0');
  const std::vector<std::string> words = {zeros, "\xff\xff\xff\xff", "\x07", "\x08", "\x06",
                                          "\x01"};
  fuzz("decode_structure", Mutator(5, good, words), [](std::string_view text) {
    std::string_view rest = text;
    const Structure structure = decode_structure(rest);
    std::string again;
    encode(structure, again);
    CHECK(again == text.substr(0, text.size() - rest.size()));
  });
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::actions();
  pipert::csv();
  pipert::json();
  pipert::zero_bubble();
  pipert::structures();
}
