#include "ir/json.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "base/json_reader.h"
#include "base/suggest.h"

namespace pipert {
namespace {

constexpr std::string_view kFormat = "pipert.schedule";
constexpr std::int32_t kVersion = 1;

constexpr std::array<std::string_view, 7> kMembers = {
    "format", "version", "name", "num_microbatches", "num_slices", "placement", "actions"};
constexpr std::array<std::string_view, 2> kPlacementMembers = {"ranks", "num_copies"};

class ScheduleReader {
 public:
  explicit ScheduleReader(std::string_view text) : reader_(text) {}

  Schedule read() {
    object(kMembers, [this](std::string_view key) { member(key); });
    reader_.end();
    return std::move(schedule_);
  }

 private:
  // Reads an object that has all of `members` and no others.
  template <typename Member>
  void object(std::span<const std::string_view> members, Member member) {
    std::vector<std::string_view> missing(members.begin(), members.end());
    reader_.object([&](const std::string& key) {
      if (std::erase(missing, key) == 0) reader_.refuse(unknown_name("key", key, members));
      member(key);
    });
    if (!missing.empty()) reader_.refuse(concat("expected the key '", missing.front(), "'"));
  }

  void member(std::string_view key) {
    if (key == "format") {
      if (reader_.string() != kFormat) reader_.refuse(concat("expected \"", kFormat, "\""));
    } else if (key == "version") {
      const std::int32_t version = reader_.integer();
      if (version != kVersion) {
        reader_.refuse(
            concat("expected ", kVersion, ", the version that is known here, got ", version));
      }
    } else if (key == "name") {
      schedule_.name = reader_.string();
    } else if (key == "num_microbatches") {
      schedule_.num_microbatches = reader_.integer();
    } else if (key == "num_slices") {
      schedule_.num_slices = reader_.integer();
    } else if (key == "placement") {
      read_placement();
    } else {
      reader_.array([this] { read_rank(); });
    }
  }

  void read_placement() {
    std::vector<Rank> ranks;
    int num_copies = 1;
    object(kPlacementMembers, [&](std::string_view key) {
      if (key == "num_copies") {
        num_copies = reader_.integer();
      } else {
        reader_.array([&] { ranks.push_back(reader_.integer()); });
      }
    });
    if (ranks.empty() && num_copies == 1) return;  // a schedule of nothing yet
    // Every rank owns a stage, so there are no more ranks than stages.
    const auto most = static_cast<Rank>(std::max<std::size_t>(ranks.size(), 1));
    const Rank last = ranks.empty() ? 0 : *std::max_element(ranks.begin(), ranks.end());
    try {
      schedule_.placement =
          Placement(std::clamp(last, 0, most - 1) + 1, std::move(ranks), num_copies);
    } catch (const ValueError& error) {
      reader_.refuse(error.what());
    }
  }

  void read_rank() {
    std::vector<Action>& actions = schedule_.ranks.emplace_back();
    reader_.array([&] {
      const std::string text = reader_.string();
      try {
        actions.push_back(parse_action(text));
      } catch (const ValueError& error) {
        reader_.refuse(error.what());
      }
    });
  }

  JsonReader reader_;
  Schedule schedule_;
};

void append_placement(std::string& out, const Placement& placement) {
  out.append("{\"ranks\": [");
  for (StageIndex stage = 0; stage < placement.num_stages(); ++stage) {
    if (stage > 0) out.append(", ");
    out.append(std::to_string(placement.ranks()[as_index(stage)]));
  }
  out.append("], \"num_copies\": ").append(std::to_string(placement.num_copies())).append("}");
}

void append_actions(std::string& out, const std::vector<Action>& actions) {
  out.append("[");
  for (std::size_t i = 0; i < actions.size(); ++i) {
    out.append(i > 0 ? ", \"" : "\"").append(to_string(actions[i])).append("\"");
  }
  out.append("]");
}

}  // namespace

std::string to_json(const Schedule& schedule) {
  std::string out = concat("{\n\"format\": \"", kFormat, "\",\n\"version\": ", kVersion,
                           ",\n\"name\": ", json_quote(schedule.name),
                           ",\n\"num_microbatches\": ", schedule.num_microbatches,
                           ",\n\"num_slices\": ", schedule.num_slices, ",\n\"placement\": ");
  append_placement(out, schedule.placement);
  out.append(",\n\"actions\": [");
  for (std::size_t rank = 0; rank < schedule.ranks.size(); ++rank) {
    out.append(rank > 0 ? ",\n" : "\n");
    append_actions(out, schedule.ranks[rank]);
  }
  return out.append("\n]\n}\n");
}

Schedule parse_json(std::string_view text) { return ScheduleReader(text).read(); }

}  // namespace pipert
