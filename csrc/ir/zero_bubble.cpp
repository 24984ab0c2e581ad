#include "ir/zero_bubble.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "base/quote.h"
#include "base/suggest.h"

namespace pipert {
namespace {

struct Word {
  std::string_view type;     // of a node
  std::string_view printed;  // what their programs print
  std::optional<ActionKind> kind = std::nullopt;
  bool is_vocabulary = false;  // without a kind: refused, not left out
};

constexpr std::array<Word, 21> kWords = {{
    {"F", "F", ActionKind::kForward},
    {"B", "B", ActionKind::kInputGrad},
    {"W", "W", ActionKind::kWeightGrad},
    {"BW", "BW", ActionKind::kBackward},
    {"R", "R", ActionKind::kRecompute},
    {"SEND_FORWARD", "SF", ActionKind::kSendForward},
    {"RECV_FORWARD", "RF", ActionKind::kRecvForward},
    {"SEND_BACKWARD", "SB", ActionKind::kSendBackward},
    {"RECV_BACKWARD", "RB", ActionKind::kRecvBackward},
    {"POST_VALIDATION", "PV"},
    {"SEND_POST_VALIDATION", "SPV"},
    {"RECV_POST_VALIDATION", "RPV"},
    {"S", "S", std::nullopt, true},
    {"T", "T", std::nullopt, true},
    {"IF", "IF", std::nullopt, true},
    {"IB", "IB", std::nullopt, true},
    {"REDUCE_INPUT_EMBD_FORWARD", "SIF", std::nullopt, true},
    {"BROADCAST_INPUT_EMBD_BACKWARD", "RIB", std::nullopt, true},
    {"BROADCAST_OUTPUT_EMBD_S", "RS", std::nullopt, true},
    {"BROADCAST_OUTPUT_EMBD_T", "RT", std::nullopt, true},
    {"REDUCE_OUTPUT_EMBD", "SS", std::nullopt, true},
}};

using Names = std::array<std::string_view, kWords.size()>;

const Word& find_word(std::string_view name, std::string_view Word::* form) {
  Names names;
  std::transform(kWords.begin(), kWords.end(), names.begin(),
                 [&](auto& each) { return each.*form; });
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw ValueError(unknown_name("type of node", name, names));
  const Word& word = kWords[static_cast<std::size_t>(found - names.begin())];
  if (word.is_vocabulary) {
    throw ValueError(
        concat(name, " belongs to a parallel vocabulary, which has no counterpart here"));
  }
  return word;
}

void require_in_range(std::string_view what, int value, int most) {
  if (value >= 0 && value <= most) return;
  throw ValueError(concat(what, " must be in [0, ", most, "], got ", value));
}

// Calls `each` with every element of every row. An error gets row and column.
template <typename Row, typename Each>
void for_each_cell(const std::vector<Row>& rows, Each each) {
  for (std::size_t row = 0; row < rows.size(); ++row) {
    for (std::size_t column = 0; column < rows[row].size(); ++column) {
      try {
        each(static_cast<Rank>(row), rows[row][column]);
      } catch (const ValueError& error) {
        throw ValueError(concat("row ", row + 1, ", column ", column + 1, ": ", error.what()));
      }
    }
  }
}

Placement default_placement(int num_ranks, int num_chunks) {
  if (num_chunks > 2) {
    throw ValueError(concat("placement must be given for more than 2 chunks, got ", num_chunks));
  }
  return Placement::v_shaped(num_ranks, num_ranks * num_chunks);
}

class NodeReader {
 public:
  NodeReader(const std::vector<std::vector<ZeroBubbleNode>>& ranks,
             const std::optional<Placement>& placement, std::string name)
      : ranks_(ranks) {
    if (ranks.empty())
      throw ValueError("a zero-bubble schedule must have a row for each rank, got none");
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      if (ranks[rank].empty())
        throw ValueError(
            concat("row ", rank + 1, ": every rank must have a node, rank ", rank, " has none"));
    }
    int num_chunks = 1;
    for_each_cell(ranks, [&](Rank, const ZeroBubbleNode& node) {
      require_in_range("chunk", node.chunk, kMaxSlice);
      require_in_range("seq_split_idx", node.seq_split, kMaxSlice);
      num_chunks = std::max(num_chunks, node.chunk + 1);
      schedule_.num_slices = std::max(schedule_.num_slices, node.seq_split + 1);
    });
    const auto num_ranks = static_cast<int>(ranks.size());
    schedule_.name = std::move(name);
    schedule_.placement = placement ? *placement : default_placement(num_ranks, num_chunks);
    if (schedule_.placement.num_ranks() != num_ranks) {
      throw ValueError(concat("placement must be for ", num_ranks, " ranks, got one for ",
                              schedule_.placement.num_ranks()));
    }
  }

  Schedule read() {
    schedule_.ranks.resize(ranks_.size());
    for_each_cell(ranks_, [this](Rank rank, const ZeroBubbleNode& node) { add(rank, node); });
    schedule_.num_microbatches = count_microbatches(schedule_.ranks);
    return std::move(schedule_);
  }

 private:
  void add(Rank rank, const ZeroBubbleNode& node) {
    const Word& word = find_word(node.type, &Word::type);
    require_in_range("microbatch", node.microbatch, kMaxIndex);
    if (!word.kind) return;
    const auto stages = schedule_.placement.stages_of(rank);
    require_in_range("chunk", node.chunk, static_cast<int>(stages.size()) - 1);
    const bool is_sliced = schedule_.num_slices > 1;
    schedule_.ranks[as_index(rank)].push_back(
        {.kind = *word.kind,
         .slice = is_sliced ? static_cast<Slice>(node.seq_split) : kWholeSequence,
         .stage = stages[as_index(node.chunk)],
         .microbatch = node.microbatch});
  }

  const std::vector<std::vector<ZeroBubbleNode>>& ranks_;
  Schedule schedule_;
};

bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }

// "f0": its letters, then a number.
ZeroBubbleNode parse_word(std::string_view text) {
  const auto is_end = [](char c) { return !is_letter(c); };
  const auto end = std::find_if(text.begin(), text.end(), is_end) - text.begin();
  const std::string_view letters = text.substr(0, static_cast<std::size_t>(end));
  const std::string_view digits = text.substr(letters.size());
  constexpr std::size_t kMostDigits = 9;  // of kMaxIndex
  const bool is_number =
      !digits.empty() && digits.find_first_not_of("0123456789") == std::string_view::npos;
  if (letters.empty() || !is_number || digits.size() > kMostDigits) {
    throw ValueError(concat("expected a type and a microbatch such as f0, got ", quote(text)));
  }
  const auto is_capital = [](char c) { return c >= 'A' && c <= 'Z'; };
  const bool capital = std::all_of(letters.begin(), letters.end(), is_capital);
  if (!capital && std::any_of(letters.begin(), letters.end(), is_capital)) {
    throw ValueError(concat("expected small or capital letters, got both in ", quote(text)));
  }
  std::string name(letters);
  std::transform(name.begin(), name.end(), name.begin(), [](char c) {
    return static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  });
  return {.type = std::string(find_word(name, &Word::printed).type),
          .chunk = capital ? 1 : 0,
          .microbatch = std::stoi(std::string(digits))};
}

std::vector<std::vector<std::string_view>> cut(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r";
  std::vector<std::vector<std::string_view>> rows;
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    auto& words = rows.emplace_back();
    for (std::size_t begin = line.find_first_not_of(kBlanks); begin != std::string_view::npos;
         begin = line.find_first_not_of(kBlanks)) {
      line.remove_prefix(begin);
      words.push_back(line.substr(0, line.find_first_of(kBlanks)));
      line.remove_prefix(words.back().size());
    }
  }
  return rows;
}

// Capital letters mean the second chunk only where small ones mean the first.
void join_single_chunk(std::vector<std::vector<ZeroBubbleNode>>& ranks) {
  const bool has_first = std::any_of(ranks.begin(), ranks.end(), [](const auto& nodes) {
    return std::any_of(nodes.begin(), nodes.end(),
                       [](const auto& node) { return node.chunk == 0; });
  });
  if (has_first) return;
  for (auto& nodes : ranks) {
    for (ZeroBubbleNode& node : nodes) node.chunk = 0;
  }
}

// Makes a B without a W of its own the whole backward that it stands for.
void tell_whole_backwards(std::vector<ZeroBubbleNode>& nodes) {
  std::set<std::pair<int, int>> split;
  for (const ZeroBubbleNode& node : nodes) {
    if (node.type == "W") split.emplace(node.chunk, node.microbatch);
  }
  for (ZeroBubbleNode& node : nodes) {
    if (node.type == "B" && !split.contains({node.chunk, node.microbatch})) node.type = "BW";
  }
}

}  // namespace

Schedule from_zero_bubble(const std::vector<std::vector<ZeroBubbleNode>>& ranks,
                          const std::optional<Placement>& placement, std::string name) {
  return NodeReader(ranks, placement, std::move(name)).read();
}

Schedule parse_zero_bubble(std::string_view text, const std::optional<Placement>& placement,
                           std::string name) {
  const auto rows = cut(text);
  std::vector<std::vector<ZeroBubbleNode>> ranks(rows.size());
  for_each_cell(rows, [&](Rank rank, std::string_view word) {
    ranks[as_index(rank)].push_back(parse_word(word));
  });
  join_single_chunk(ranks);
  for (auto& nodes : ranks) tell_whole_backwards(nodes);
  return from_zero_bubble(ranks, placement, std::move(name));
}

}  // namespace pipert
