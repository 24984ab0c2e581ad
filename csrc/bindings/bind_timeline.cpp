// Timeline, its spans, messages and gaps; and Schedule.simulate, which makes one.

#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <tuple>

#include "analysis/gaps.h"
#include "analysis/messages.h"
#include "analysis/simulate.h"
#include "analysis/timeline.h"
#include "base/error.h"
#include "base/index.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace pipert {
namespace {

using SpanTuple = std::tuple<Action, double, double>;

using PlaceTuple = std::tuple<Rank, int>;
using PairTuple = std::tuple<PlaceTuple, PlaceTuple>;

Place place_of(const PlaceTuple& given) { return {std::get<0>(given), std::get<1>(given)}; }

Timeline timeline_from_spans(const std::vector<std::vector<SpanTuple>>& ranks,
                             const std::optional<std::vector<PairTuple>>& messages) {
  std::vector<std::vector<Span>> result;
  for (const auto& spans : ranks) {
    auto& out = result.emplace_back();
    for (const auto& [action, start, end] : spans) out.push_back({action, start, end});
  }
  Timeline timeline = make_timeline(std::move(result));
  if (!messages) return timeline;
  std::vector<SpanPair> ends;
  for (const auto& [sender, reader] : *messages)
    ends.push_back({place_of(sender), place_of(reader)});
  timeline.messages = message_spans(timeline, ends);
  return timeline;
}

std::optional<std::vector<double>> peak_bytes_of(const Timeline& timeline) {
  return timeline.peak_bytes.empty() ? std::nullopt : std::optional(timeline.peak_bytes);
}

Timeline simulate_schedule(const Schedule& schedule, const Costs& costs, bool messages) {
  return simulate(schedule, costs, messages ? Detail::kMessages : Detail::kSpans);
}

// For Python, where a span or a message goes without its timeline.
struct SpanOfRank {
  Rank rank = 0;
  Span span;
  friend bool operator==(const SpanOfRank&, const SpanOfRank&) = default;
};
struct NamedMessage {
  MessageSpan times;
  Action sender;
  Action reader;
};

std::vector<std::vector<SpanOfRank>> spans_of_ranks(const Timeline& timeline) {
  std::vector<std::vector<SpanOfRank>> result;
  for (const auto& spans : timeline.ranks) {
    const auto rank = static_cast<Rank>(result.size());
    auto& out = result.emplace_back();
    for (const Span& span : spans) out.push_back({rank, span});
  }
  return result;
}

std::vector<SpanOfRank> critical_path_of(const Timeline& timeline) {
  std::vector<SpanOfRank> path;
  for (const Place place : timeline.critical_path) {
    path.push_back({place.rank, span_at(timeline, place)});
  }
  return path;
}

std::vector<NamedMessage> named_messages(const Timeline& timeline) {
  std::vector<NamedMessage> result;
  for (const MessageSpan& each : messages_of(timeline)) {
    result.push_back(
        {each, span_at(timeline, each.sender).action, span_at(timeline, each.reader).action});
  }
  return result;
}

void bind_span(py::module_& module) {
  py::class_<SpanOfRank>(module, "Span", "When one action ran.")
      .def_readonly("rank", &SpanOfRank::rank)
      .def_property_readonly("action", [](const SpanOfRank& self) { return self.span.action; })
      .def_property_readonly("start", [](const SpanOfRank& self) { return self.span.start; })
      .def_property_readonly("end", [](const SpanOfRank& self) { return self.span.end; })
      .def(py::self == py::self)
      .def("__repr__", [](const SpanOfRank& self) {
        return concat("<Span ", to_string(self.span.action), " on rank ", self.rank, ": ",
                      self.span.start, " to ", self.span.end, ">");
      });
}

void bind_message(py::module_& module) {
  py::class_<NamedMessage>(module, "MessageSpan", "What one rank sent to another, and when.")
      .def_readonly("sender", &NamedMessage::sender, "The action that made it.")
      .def_readonly("reader", &NamedMessage::reader, "The action that needs it.")
      .def_property_readonly("source",
                             [](const NamedMessage& self) { return self.times.sender.rank; })
      .def_property_readonly("destination",
                             [](const NamedMessage& self) { return self.times.reader.rank; })
      .def_property_readonly(
          "sent", [](const NamedMessage& self) { return self.times.sent; },
          "When it was ready to leave; if transfers block, when both ranks had come to it.")
      .def_property_readonly(
          "begun", [](const NamedMessage& self) { return self.times.begun; },
          "When its link took it up.")
      .def_property_readonly(
          "arrived", [](const NamedMessage& self) { return self.times.arrived; },
          "When it was on the reader's rank; when the reader began, if the timeline is measured.")
      .def("__repr__", [](const NamedMessage& self) {
        return concat("<MessageSpan of ", to_string(self.sender), " on rank ",
                      self.times.sender.rank, " for ", to_string(self.reader), " on rank ",
                      self.times.reader.rank, ": ", self.times.begun, " to ", self.times.arrived,
                      ">");
      });
}

void bind_gap(py::module_& module) {
  py::class_<Gap>(module, "Gap", "A time in which a rank was idle, and why.")
      .def_readonly("rank", &Gap::rank)
      .def_readonly("start", &Gap::start)
      .def_readonly("end", &Gap::end)
      .def_property_readonly(
          "kind", [](const Gap& self) { return gap_reason_name(self.reason); },
          "producer, transfer, link, reader, sending, done or unknown.")
      .def_property_readonly(
          "reason", [](const Gap& self) { return to_string(self); }, "The same in words.")
      .def_property_readonly(
          "waits_for",
          [](const Gap& self) {
            return self.other < 0 ? std::nullopt : std::optional(self.action);
          },
          "The action that it is about: the producer, the one whose message is on the link, or the "
          "one that takes the message.")
      .def_property_readonly(
          "other",
          [](const Gap& self) { return self.other < 0 ? std::nullopt : std::optional(self.other); },
          "That action's rank.")
      .def("__repr__", [](const Gap& self) {
        return concat("<Gap on rank ", self.rank, ": ", self.start, " to ", self.end, ", ",
                      to_string(self), ">");
      });
}

void bind_results(py::class_<Timeline>& timeline) {
  timeline
      .def_property_readonly(
          "ranks", &spans_of_ranks,
          "By rank: its spans, in order: F, B, I, W, R, and what else takes time but "
          "transfers. Overlapped pairs are taken apart.")
      .def_readonly("makespan", &Timeline::makespan, "First start on any rank to last end on any.")
      .def_readonly("spans", &Timeline::spans, "By rank: its first start to its last end.")
      .def_readonly("busy", &Timeline::busy, "By rank: what its spans take together.")
      .def_readonly("bubble", &Timeline::bubble, "By rank: 1 - busy / makespan.")
      .def_readonly("span_bubble", &Timeline::span_bubble, "By rank: 1 - busy / its own span.")
      .def_readonly("peak_memory", &Timeline::peak_memory,
                    "By rank: activations (of one stage for one microbatch) alive at once.")
      .def_property_readonly("peak_bytes", &peak_bytes_of,
                             "By rank: the same in bytes; None without Costs.activation_bytes.")
      .def_property_readonly("critical_path", &critical_path_of,
                             "The spans that the makespan waits for, first to last.")
      .def_property_readonly("messages", &named_messages,
                             "What went from rank to rank, by reader's rank, then in the order of "
                             "the readers. Made anew each time.")
      .def_property_readonly("gaps", &gaps_of,
                             "By rank: when it was idle and why, in order. Together with its spans "
                             "they fill the makespan. Made anew each time.");
}

}  // namespace

// REQUIRES bind_ir and bind_costs.
void bind_timeline(py::module_& module) {
  bind_span(module);
  bind_message(module);
  bind_gap(module);
  py::class_<Timeline> timeline(module, "Timeline",
                                "When each action of each rank ran, or would run.");
  timeline.def_static("from_spans", &timeline_from_spans, py::arg("ranks"), py::kw_only(),
                      py::arg("messages") = py::none(),
                      R"(Makes a timeline of what really happened; it knows no critical path.

Args:
    ranks: For each rank a list of (action, start, end), in order; no transfers, no overlapped
        pairs.
    messages: What went from rank to rank: a list of (sender, reader), both (rank, position among
        its spans). None: what neighbouring stages hand to each other.

Raises:
    ValueError: Another kind of action, times that make no span, or messages between no spans.)");
  bind_results(timeline);
  timeline.def("__repr__", [](const Timeline& self) {
    return concat("<Timeline: ", self.ranks.size(), " ranks, makespan ", self.makespan, ">");
  });
  py::class_<Schedule> schedule(module.attr("Schedule"));
  schedule.def("simulate", &simulate_schedule, py::arg("costs") = Costs(), py::kw_only(),
               py::arg("messages") = true, py::call_guard<py::gil_scoped_release>(),
               R"(Runs the schedule on paper.

A schedule of forwards alone is taken as an inference schedule.

Args:
    costs: What actions and messages take; by default 1 for each of F, I and W, and nothing for
        messages.
    messages: Keep when each message left and arrived, for Timeline.gaps and .messages. They take
        more memory than the spans; without, both know only what the spans tell.

Raises:
    ValueError: Costs that don't fit the schedule; a schedule that verify() rejects; ranks that
        wait for each other because transfers block.)");
}

}  // namespace pipert
