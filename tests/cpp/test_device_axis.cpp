// The runtime floor's device_axis, which is free of torch: a pass as its device saw it.

#include "check.h"
#include "runtime/device_axis.h"

namespace pipert {
namespace {

Program program_of(std::vector<decltype(Instruction::op)> ops) {
  Program program;
  for (auto& op : ops) {
    Instruction instruction;
    instruction.op = std::move(op);
    program.instructions.push_back(std::move(instruction));
  }
  return program;
}

PassTrace pass_of(std::vector<TraceEvent> events) {
  PassTrace pass;
  pass.begun_ns = 100;
  pass.done_ns = pass.ended_ns = events.back().ended_ns;
  pass.num_events = events.size();
  pass.events = std::move(events);
  return pass;
}

void test_actions_stand_when_the_device_ran_them_and_nothing_else_takes_time() {
  const Program program = program_of({Recv{}, Run{}, Send{}, Run{}, Release{}});
  // The host was through at 150; the device began at 130.
  const PassTrace host = pass_of({{100, 100, 105, 0},
                                  {105, 110, 120, 0},
                                  {120, 120, 130, 64},
                                  {130, 130, 140, 0},
                                  {140, 145, 150, 0}});
  const PassTrace device =
      on_device_axis(host, program, {{0, 125}, {130, 230}, {}, {235, 300}, {}});
  CHECK(device.events[1].issued_ns == 105);
  CHECK(device.events[1].started_ns == 130);
  CHECK(device.events[1].ended_ns == 230);
  CHECK(device.events[2].issued_ns == 230);
  CHECK(device.events[2].ended_ns == 230);
  CHECK(device.events[2].bytes == 64);
  CHECK(device.events[3].issued_ns == 230);  // the host had been there long before
  CHECK(device.events[3].started_ns == 235);
  CHECK(device.events[4].ended_ns == 300);
  CHECK(device.events[0].ended_ns == 125);  // the message's arrival, on its own lane
  CHECK(device.done_ns == 300);
  CHECK(device.ended_ns == 300);
  CHECK(device.begun_ns == 100);
}

void test_a_late_host_is_told_from_a_late_message() {
  const Program program = program_of({Run{}, Run{}});
  const PassTrace host = pass_of({{100, 100, 110, 0}, {400, 400, 410, 0}});
  const PassTrace device = on_device_axis(host, program, {{105, 200}, {420, 500}});
  CHECK(device.events[1].issued_ns == 400);
  CHECK(device.events[1].started_ns == 420);
}

void test_times_never_run_backwards_where_readings_are_coarse() {
  const Program program = program_of({Run{}, Run{}});
  const PassTrace host = pass_of({{100, 100, 110, 0}, {110, 110, 120, 0}});
  const PassTrace device = on_device_axis(host, program, {{90, 200}, {199, 198}});
  CHECK(device.events[0].started_ns == 100);
  CHECK(device.events[1].started_ns == 200);
  CHECK(device.events[1].ended_ns == 200);
}

void test_moves_stand_beside_compute() {
  const Program program = program_of({Run{}, Move{}, Run{}});
  const PassTrace host = pass_of({{100, 100, 110, 0}, {110, 110, 120, 0}, {120, 120, 130, 0}});
  const PassTrace device = on_device_axis(host, program, {{110, 200}, {205, 400}, {210, 300}});
  CHECK(device.events[1].started_ns == 205);
  CHECK(device.events[1].ended_ns == 400);
  CHECK(device.events[2].started_ns == 210);
  CHECK(device.events[2].ended_ns == 300);
  CHECK(device.done_ns == 300);
}

void test_an_action_that_was_not_timed_keeps_the_hosts_times() {
  const Program program = program_of({Run{}});
  const PassTrace host = pass_of({{100, 105, 110, 0}});
  const PassTrace device = on_device_axis(host, program, {{}});
  CHECK(device.events[0].started_ns == 105);
  CHECK(device.events[0].ended_ns == 110);
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::test_actions_stand_when_the_device_ran_them_and_nothing_else_takes_time();
  pipert::test_a_late_host_is_told_from_a_late_message();
  pipert::test_times_never_run_backwards_where_readings_are_coarse();
  pipert::test_moves_stand_beside_compute();
  pipert::test_an_action_that_was_not_timed_keeps_the_hosts_times();
}
