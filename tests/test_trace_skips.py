"""Traces of stages that read beyond the chain: every message is told from the others, also where
the same result goes to several ranks.

The times are by hand: a run takes 1, a send SENDING, its message LATENCY more, all else nothing.
"""

import json

import pytest
from plain_loop import batch
from test_trace_chrome import check_chrome
from torch import nn
from wired_stages import random_stages

import pipert
from pipert import _C
from pipert.local.routes import routes_of
from pipert.reports import in_flight
from pipert.reports.measured_costs import measured_costs
from pipert.reports.report import report_rank

pytestmark = pytest.mark.timeout(60)
LATENCY, SENDING = 0.25, 0.015625
CHAIN_BYTES, SKIP_BYTES = 1000, 10
GRAPH = _C.StageGraph(activations=[(0, 2), (0, 3), (1, 3)], gradients=[(2, 0), (3, 0), (3, 1)])


def schedule_of(name, num_ranks):
    return pipert.Schedule.build(name, num_ranks=num_ranks, num_stages=4, num_microbatches=8)


SCHEDULES = [schedule_of("1f1b", 4), schedule_of("interleaved_1f1b", 2), schedule_of("zb_v", 2)]


def size_of(message, schedule):
    """Messages to the rank of a neighbour are of one size, others of another."""
    kind, stage, _, destination = message
    neighbour = stage + (1 if kind == "activation" else -1)
    return CHAIN_BYTES if schedule.placement.ranks[neighbour] == destination else SKIP_BYTES


class Player:
    """Gives each instruction of the programs its times."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.programs = pipert.lower(schedule, stage_graph=GRAPH)
        self.at = [0.0] * len(self.programs)
        self.rows = [[] for _ in self.programs]
        self.arrived = {}  # (source, destination, sequence) -> when

    def trace(self):
        while any(self.advance(rank) for rank in range(len(self.programs))):
            pass
        ns = 1_000_000_000
        raw = []
        for rank, rows in enumerate(self.rows):
            assert len(rows) == len(self.programs[rank])
            events = [(*(round(t * ns) for t in times), size) for *times, size in rows]
            end = round(self.at[rank] * ns)
            raw.append((rank, True, 0, end, end, events))
        return pipert.Trace(raw, dict(enumerate(self.programs)))

    def advance(self, rank):
        program, rows = self.programs[rank], self.rows[rank]
        before = len(rows)
        slots, posted = program.slots, {}
        for number, op in enumerate(program.instructions):
            if op["kind"] == "recv":
                posted[op["slot"]] = op["sequence"]
            if number < len(rows):
                continue
            now, size = self.at[rank], 0
            started = ended = now
            if op["kind"] == "run":
                keys = [
                    (slots[slot]["source"], rank, posted[slot])
                    for slot in op["reads"]
                    if slots[slot]["kind"] == "receive"
                ]
                if not self.arrived.keys() >= set(keys):
                    break
                started = max([now, *(self.arrived[key] for key in keys)])
                ended = started + 1
            elif op["kind"] == "send":
                destination = slots[op["slot"]]["destination"]
                size = size_of((*op["message"], destination), self.schedule)
                ended = now + SENDING
                self.arrived[rank, destination, op["sequence"]] = ended + LATENCY
            rows.append((now, started, ended, size))
            self.at[rank] = ended
        return len(rows) > before


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: schedule.name)
def played(request):
    return request.param, Player(request.param).trace()


def sources_of(action):
    """Stages whose results it reads, the nearest first."""
    stage = action.stage
    if action.kind == "F":
        beyond = [source for source, reader in GRAPH.activations if reader == stage]
        return sorted([*beyond, *([stage - 1] if stage else [])], reverse=True)
    if action.kind in "BI":
        beyond = [source for source, reader in GRAPH.gradients if reader == stage]
        return sorted([*beyond, *([stage + 1] if stage < 3 else [])])
    return []


def test_a_run_tells_all_messages_that_it_reads_and_each_has_its_own_send(played):
    schedule, trace = played
    rank_of = schedule.placement.ranks
    num_read = 0
    for event in trace.events:
        if event.kind != "run":
            assert event.reads == ()
            continue
        stages = [message.stage for message in event.reads]
        assert [s for s in sources_of(event.action) if s in stages] == stages
        assert event.message == (event.reads[0] if event.reads else None)
        for message in event.reads:
            num_read += 1
            send = trace.sender_of(message)
            assert (send.kind, send.rank, send.message) == ("send", rank_of[message.stage], message)
            assert (message.source, message.destination) == (send.rank, event.rank)
            assert message.microbatch == event.action.microbatch
            later = (message.kind == "activation") == (message.stage < event.action.stage)
            assert later
            assert message.peer_is(event.rank) == (
                "upstream" if message.kind == "activation" else "downstream"
            )
    assert num_read == sum(event.kind == "send" for event in trace.events)
    if schedule.num_ranks == 4:
        assert max(len(event.reads) for event in trace.events) == 3


def test_the_parts_of_a_ranks_time_add_up_to_it(played):
    _, trace = played
    last = max(rank.done for rank in trace.ranks)
    for rank in trace.ranks:
        report = report_rank(trace, rank, last)
        parts = ("compute_s", "transfer_s", "upstream_s", "downstream_s", "end_s", "host_s")
        assert sum(getattr(report, part) for part in parts) == pytest.approx(report.step_s)
        runs = sum(event.kind == "run" for event in trace.events_of(rank.rank))
        assert report.compute_s == pytest.approx(runs)
        assert report.host_s == pytest.approx(0)


def test_costs_are_measured_by_edge_and_those_of_the_chain_are_its_own(played):
    schedule, trace = played
    costs = measured_costs([trace], schedule, GRAPH)
    rank_of = schedule.placement.ranks
    crosses = [rank_of[stage] != rank_of[stage + 1] for stage in range(3)]
    expected = [CHAIN_BYTES * is_message for is_message in crosses] + [0]
    assert costs.bytes == expected
    assert costs.gradient_bytes == expected
    assert costs.stage_graph == GRAPH
    messages = sorted((m.source, m.destination) for m in schedule.simulate(costs).messages)
    sends = [event for event in trace.events if event.kind == "send"]
    assert messages == sorted((e.message.source, e.message.destination) for e in sends)
    for maker, readers, size in costs.skips:
        step = 1 if readers[0] > maker else -1
        ranks = {rank_of[reader] for reader in readers}
        assert len(ranks) == 1
        is_counted = ranks <= {rank_of[maker], rank_of[maker + step]}
        assert (size == 0) == is_counted, (maker, readers)
    for edge, latency in costs.latency.items():
        assert latency == pytest.approx(LATENCY), edge


def test_bytes_on_their_way_count_each_message_until_it_is_known_to_be_read(played):
    schedule, trace = played
    timeline = schedule.simulate(measured_costs([trace], schedule))
    for rank in range(schedule.num_ranks):
        on_their_way, most = {}, 0
        for event in trace.events_of(rank):
            if event.kind == "send":
                on_their_way[event.message] = event.bytes
            elif event.kind == "release":
                del on_their_way[event.message]
            most = max(most, sum(on_their_way.values()))
        assert not on_their_way
        assert in_flight.measured(trace, rank) == most
        assert (
            0
            < in_flight.predicted(trace, timeline, rank)
            <= sum(event.bytes for event in trace.events_of(rank))
        )


def test_chromes_form_has_an_arrow_for_every_message(played, tmp_path):
    schedule, trace = played
    trace.to_chrome(tmp_path / "trace.json")
    records = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    arrows = check_chrome(records)
    sends = [event for event in trace.events if event.kind == "send"]
    assert len(arrows) == len(sends)
    ends = []
    for send, *_, run in arrows.values():
        assert send["args"]["message"] in run["args"].get("reads", [run["args"]["message"]])
        ends.append((send["args"]["message"], send["pid"], run["pid"]))
    assert sorted(ends) == sorted(
        (str(e.message), e.message.source, e.message.destination) for e in sends
    )
    of_several = [
        ", ".join(map(str, event.reads))
        for event in trace.events
        if len(event.reads) > 1 and event.started > event.issued
    ]
    assert of_several or schedule.num_ranks == 2
    waits = {r["name"] for r in records if r["ph"] == "X" and r["cat"] == "wait"}
    assert waits >= {f"wait for {names}" for names in of_several}


def test_the_timeline_has_all_messages(played):
    _, trace = played
    expected = []
    for event in trace.events:
        for message in event.reads:
            # Here all backwards of a schedule are whole, or all are split.
            made = "F" if message.kind == "activation" else event.action.kind
            maker = f"{message.stage}{made}{message.microbatch}"
            expected.append((maker, str(event.action), message.source, message.destination))
    found = [
        (str(each.sender), str(each.reader), each.source, each.destination)
        for each in trace.timeline().messages
    ]
    assert sorted(found) == sorted(expected)


def test_a_gap_is_the_time_of_the_one_whose_message_was_sent_last():
    first, second, third = (pipert.Action("F", stage, 0) for stage in range(3))
    spans = [[(first, 0.0, 1.0)], [(second, 1.0, 4.0)], [(third, 5.0, 6.0)]]
    messages = [((0, 0), (2, 0)), ((1, 0), (2, 0)), ((0, 0), (1, 0))]
    timeline = pipert.Timeline.from_spans(spans, messages=messages)
    assert [(each.source, each.destination, each.sent) for each in timeline.messages] == [
        (0, 1, 1.0),
        (1, 2, 4.0),
        (0, 2, 1.0),
    ]
    found = [(g.start, g.end, g.kind, str(g.waits_for)) for g in timeline.gaps[2]]
    assert found == [(0.0, 4.0, "producer", "1F0"), (4.0, 5.0, "transfer", "1F0")]


@pytest.mark.parametrize("ends", [((0, 0), (3, 0)), ((0, 1), (1, 0)), ((-1, 0), (1, 0))])
def test_messages_between_no_spans_are_refused(ends):
    spans = [[(pipert.Action("F", stage, 0), 0.0, 1.0)] for stage in range(3)]
    with pytest.raises(ValueError, match="ends must be spans"):
        pipert.Timeline.from_spans(spans, messages=[ends])
    with pytest.raises(ValueError, match="from a rank to another, got two ends on 1"):
        pipert.Timeline.from_spans(spans, messages=[((1, 0), (1, 0))])


@pytest.mark.parametrize(("name", "num_ranks"), [("1f1b", 4), ("interleaved_1f1b", 2), ("zb_v", 2)])
def test_a_step_of_stages_that_hand_each_other_values_is_traced(name, num_ranks, tmp_path):
    stages = random_stages(9, 4)
    x, y = batch(9)
    options = {"schedule": name, "num_ranks": num_ranks, "num_microbatches": 4}
    with pipert.Pipeline(stages, loss_fn=nn.functional.mse_loss, **options) as pipe:
        pipe.step(x=x, target=y)
        trace, report, costs = pipe.trace(), pipe.report(), pipe.costs()
        programs = list(pipe.program)
    sends = [event for event in trace.events if event.kind == "send"]
    assert len(sends) == sum(i["kind"] == "send" for p in programs for i in p.instructions)
    assert len({event.message for event in sends}) == len(sends)
    assert sum(len(event.reads) for event in trace.events) == len(sends)
    assert len(trace.timeline().messages) == len(sends)
    trace.to_chrome(tmp_path / "trace.json")
    records = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(check_chrome(records)) == len(sends)
    for rank in report.ranks:
        parts = ("compute_s", "transfer_s", "upstream_s", "downstream_s", "end_s", "host_s")
        assert sum(getattr(rank, part) for part in parts) == pytest.approx(rank.step_s)
    assert sum(memory.transfer_bytes for memory in report.memory) > 0
    assert costs.stage_graph == routes_of(stages).stage_graph() == programs[0].stage_graph
    simulated = pipe.schedule.simulate(costs)
    assert sorted((m.source, m.destination) for m in simulated.messages) == sorted(
        (event.message.source, event.message.destination) for event in sends
    )
