// The ir floor: the parsers take any bytes, and what they take is printed back.

#include <array>
#include <random>
#include <string>
#include <string_view>

#include "base/error.h"
#include "check.h"
#include "ir/routes.h"
#include "ir/schedule.h"

namespace pipert {
namespace {

constexpr int kRounds = 100'000;

// Random bytes hardly ever get past the first check, so most texts are of the grammar's own words.
std::string random_text(std::mt19937& random, int round, int longest) {
  constexpr std::array<std::string_view, 16> kWords = {
      "0",      "1",       "12", "F", "B", "I", "W",           "SEND_F",
      "RECV_B", "UNSHARD", "(",  ";", ")", ",", "OVERLAP_F_B", "\n"};
  std::uniform_int_distribution<int> length(0, longest);
  std::uniform_int_distribution<std::size_t> word(0, kWords.size() - 1);
  std::uniform_int_distribution<int> byte(-128, 127);
  std::string text;
  for (int left = length(random); left > 0; --left) {
    if (round % 4 == 0) {
      text += static_cast<char>(byte(random));
    } else {
      text += kWords[word(random)];
    }
  }
  return text;
}

void parse_action_takes_the_whole_text_or_throws() {
  std::mt19937 random(1);
  int taken = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::string text = random_text(random, round, 5);
    try {
      const Action action = parse_action(text);
      CHECK(parse_action(to_string(action)) == action);
      ++taken;
    } catch (const ValueError&) {
    }
  }
  CHECK(taken > 100);
}

void parse_csv_takes_the_whole_text_or_throws() {
  std::mt19937 random(2);
  int taken = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::string text = random_text(random, round, 12);
    try {
      const Schedule schedule = parse_csv(text);
      CHECK(parse_csv(to_csv(schedule)) == schedule);
      ++taken;
    } catch (const ValueError&) {
    }
  }
  CHECK(taken > 10);
}

// One byte of a good text changed: still a schedule, or an error.
void parse_csv_survives_a_changed_byte() {
  const std::string good =
      "0F0,0SEND_F0,(0F1;0B0)OVERLAP_F_B,0B1\r\n1RECV_F0,1F0,1B0,1F1,1I1,1W1,1UNSHARD\r\n";
  CHECK(parse_csv(good).num_microbatches == 2);
  for (std::size_t i = 0; i < good.size(); ++i) {
    for (int c = 0; c < 256; ++c) {
      std::string text = good;
      text[i] = static_cast<char>(c);
      try {
        const Schedule schedule = parse_csv(text);
        CHECK(parse_csv(to_csv(schedule)) == schedule);
      } catch (const ValueError&) {
      }
    }
  }
}

void actions_are_values() {
  const Action pair = parse_action("(0F7;7B3)OVERLAP_F_B");
  CHECK(overlapped_forward(pair) == forward(0, 7));
  CHECK(overlapped_backward(pair) == backward(7, 3));
  CHECK(to_string(pair) == "(0F7;7B3)OVERLAP_F_B");
  CHECK(forward(0, 1) < forward(0, 2));
}

void placements_refuse_what_is_no_placement() {
  CHECK(Placement::v_shaped(2, 4).rank_of(3) == 0);
  CHECK_THROWS(Placement::loop(2, 3), ValueError);
  CHECK_THROWS(Placement::loop(0, 0), ValueError);
  CHECK_THROWS(Placement(2, {0, 5}), ValueError);
  CHECK_THROWS(Placement::loop(2, 4).rank_of(-1), IndexError);
  CHECK_THROWS(Placement::loop(2, 4).stages_of(2), IndexError);
}

void values_go_out_as_a_star_and_gradients_come_back_as_a_relay() {
  Routes routes;
  routes.values = {{0, {1, 3, 4}, true, "a"}, {0, {2}, false, "b"}, {3, {4}, true, "c"}};
  const StageGraph graph = stage_graph(routes);
  CHECK((graph.activations == std::vector<StagePair>{{0, 2}, {0, 3}, {0, 4}}));
  CHECK((graph.gradients == std::vector<StagePair>{{3, 1}}));
  CHECK(!graph.is_chain());
  routes.values = {{0, {1, 2}, true, "a"}, {0, {2}, true, "b"}};
  CHECK((stage_graph(routes).gradients == std::vector<StagePair>{{2, 0}}));
  CHECK(stage_graph({}).is_chain());
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::parse_action_takes_the_whole_text_or_throws();
  pipert::parse_csv_takes_the_whole_text_or_throws();
  pipert::parse_csv_survives_a_changed_byte();
  pipert::actions_are_values();
  pipert::placements_refuse_what_is_no_placement();
  pipert::values_go_out_as_a_star_and_gradients_come_back_as_a_relay();
}
