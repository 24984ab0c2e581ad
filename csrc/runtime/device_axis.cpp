#include "runtime/device_axis.h"

#include <algorithm>
#include <variant>

namespace pipert {
namespace {

// An action, from when the compute lane was free. Returns when it is free again.
std::int64_t place_action(std::int64_t free_ns, const DeviceSpan& span, TraceEvent& event) {
  const std::int64_t started = span.started_ns != 0 ? span.started_ns : event.started_ns;
  const std::int64_t ended = span.ended_ns != 0 ? span.ended_ns : event.ended_ns;
  event.started_ns = std::max(started, free_ns);  // two readings may be off by their resolution
  event.issued_ns = std::clamp(event.issued_ns, free_ns, event.started_ns);
  event.ended_ns = std::max(ended, event.started_ns);
  return event.ended_ns;
}

void place_beside(const DeviceSpan& span, TraceEvent& event) {
  event.ended_ns = span.ended_ns;
  event.started_ns =
      span.started_ns != 0 ? std::min(span.started_ns, span.ended_ns) : span.ended_ns;
  event.issued_ns = std::min(event.issued_ns, event.started_ns);
}

}  // namespace

PassTrace on_device_axis(const PassTrace& host, const Program& program,
                         const std::vector<DeviceSpan>& spans) {
  PassTrace device = host;
  std::int64_t free_ns = host.begun_ns;
  for (std::size_t i = 0; i < host.num_events; ++i) {
    TraceEvent& event = device.events[i];
    if (std::holds_alternative<Run>(program.instructions[i].op)) {
      free_ns = place_action(free_ns, spans[i], event);
    } else if (spans[i].ended_ns != 0) {
      place_beside(spans[i], event);
    } else {
      event.issued_ns = event.started_ns = event.ended_ns = free_ns;
    }
  }
  device.done_ns = std::max(host.done_ns, free_ns);
  device.ended_ns = std::max(host.ended_ns, device.done_ns);
  return device;
}

}  // namespace pipert
