"""Why ranks are idle."""

import pytest
from cost_strategies import costs_for
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from schedule_strategies import good_schedules

from pipert import Costs, Schedule, Timeline

FORWARDS = [["0F0", "0F1"], ["1F0", "1F1"]]


def told(timeline):
    return [[(g.start, g.end, g.reason) for g in gaps] for gaps in timeline.gaps]


@st.composite
def timelines(draw):
    schedule = draw(good_schedules())
    costs = draw(costs_for(schedule, blocking=draw(st.booleans()), skipping=draw(st.booleans())))
    try:
        return schedule.simulate(costs)
    except ValueError:
        assert costs.blocking
        reject()


@given(timelines())
@settings(deadline=None, max_examples=200)
def test_gaps_and_spans_fill_the_makespan_to_the_last_bit(timeline):
    for gaps, spans in zip(timeline.gaps, timeline.ranks, strict=True):
        pieces = sorted([(g.start, g.end) for g in gaps] + [(s.start, s.end) for s in spans])
        assert all(start < end for start, end in pieces)
        ends = [0.0] + [end for _, end in pieces]
        assert ends[:-1] == [start for start, _ in pieces]
        assert ends[-1] == timeline.makespan


@given(timelines())
@settings(deadline=None, max_examples=200)
def test_every_reason_is_so(timeline):
    spans = {str(s.action): s for rank in timeline.ranks for s in rank}
    messages = timeline.messages
    for rank, gaps in enumerate(timeline.gaps):
        for gap in gaps:
            assert gap.rank == rank
            text = str(gap.waits_for)
            if gap.kind == "done":
                assert (gap.waits_for, gap.other) == (None, None)
                assert all(s.end <= gap.start for s in timeline.ranks[rank])
                continue
            assert spans[text].rank == gap.other
            sent = [m for m in messages if str(m.sender) == text]
            here = [m for m in sent if m.destination == rank]
            away = [m for m in messages if str(m.reader) == text and m.source == rank]
            if gap.kind == "producer":
                assert any(gap.end <= max(spans[text].end, m.sent) for m in here)
            elif gap.kind == "transfer":
                assert any(m.begun <= gap.start < gap.end <= m.arrived for m in here)
            elif gap.kind == "link":
                assert any(m.begun <= gap.start < gap.end <= m.arrived for m in sent)
            elif gap.kind == "reader":
                assert any(gap.end <= m.sent for m in away)
            else:
                assert gap.kind == "sending"
                assert any(m.begun <= gap.start < gap.end <= m.arrived for m in away)


def test_a_gap_tells_the_producer_then_the_transfer_then_that_nothing_is_left():
    assert told(Schedule(FORWARDS).simulate(Costs(latency=0.5))) == [
        [(2.0, 3.5, "nothing is left to do")],
        [
            (0.0, 1.0, "waits for 0F0 on rank 0"),
            (1.0, 1.5, "the message of 0F0 is on the way from rank 0"),
        ],
    ]


def test_a_gap_tells_each_message_that_keeps_the_link_busy():
    costs = Costs(forward=[1, 0.5], bandwidth=1, bytes=3)
    assert told(Schedule(FORWARDS).simulate(costs))[1] == [
        (0.0, 1.0, "waits for 0F0 on rank 0"),
        (1.0, 4.0, "the message of 0F0 is on the way from rank 0"),
        (4.5, 7.0, "the message of 0F1 is on the way from rank 0"),
    ]
    shared = Schedule([["0F0", "0F1", "0F2"], ["1F0", "1F1", "1F2"], ["2F0", "2F1", "2F2"]])
    costs = Costs(bandwidth=1, bytes=[4, 1, 0], links=[[(0, 1), (1, 2)]])
    assert told(shared.simulate(costs))[2][:4] == [
        (0.0, 6.0, "waits for 1F0 on rank 1"),
        (6.0, 9.0, "the link is busy with the message of 0F1 from rank 0"),
        (9.0, 13.0, "the link is busy with the message of 0F2 from rank 0"),
        (13.0, 14.0, "the message of 1F0 is on the way from rank 1"),
    ]


def test_a_gap_tells_that_a_send_blocks():
    costs = Costs(forward=[1, 3], latency=1, blocking=True)
    assert told(Schedule(FORWARDS).simulate(costs))[0] == [
        (1.0, 2.0, "its message for 1F0 is on the way to rank 1"),
        (3.0, 5.0, "waits for rank 1 to come to 1F1"),
        (5.0, 6.0, "its message for 1F1 is on the way to rank 1"),
        (6.0, 9.0, "nothing is left to do"),
    ]


def test_a_late_send_is_the_producers():
    late = [["0F0", "0F1", "0SEND_F0", "0SEND_F1"], ["1RECV_F0", "1RECV_F1", "1F0", "1F1"]]
    assert told(Schedule(late).simulate(Costs(latency=1)))[1] == [
        (0.0, 2.0, "waits for 0F0 on rank 0"),
        (2.0, 3.0, "the message of 0F0 is on the way from rank 0"),
    ]


def test_without_messages_gaps_tell_what_the_spans_do():
    schedule = Schedule.build("1f1b", num_ranks=3, num_microbatches=4)
    costs = Costs(latency=0.25)
    assert told(schedule.simulate(costs, messages=False)) == told(schedule.simulate(costs))


def test_a_measured_timeline_may_have_gaps_of_unknown_reason():
    forward, again = Schedule([["0F0", "0F1"]]).actions[0]
    measured = Timeline.from_spans([[(forward, 5.0, 6.0), (again, 7.0, 8.0)], []])
    assert told(measured) == [
        [(6.0, 7.0, "not for want of a message")],
        [(5.0, 8.0, "nothing is left to do")],
    ]
    (gap,) = measured.gaps[0]
    assert (gap.kind, gap.waits_for, gap.other) == ("unknown", None, None)
    assert repr(gap) == "<Gap on rank 0: 6 to 7, not for want of a message>"


def test_an_empty_timeline_has_no_gaps():
    assert Timeline.from_spans([[], []]).gaps == [[], []]


@pytest.mark.timeout(60)
def test_gaps_of_a_long_schedule_are_found_in_time():
    schedule = Schedule.build("1f1b", num_ranks=4, num_microbatches=20_000)
    timeline = schedule.simulate(Costs(latency=0.1, bandwidth=1, bytes=0.5))
    idle = [sum(g.end - g.start for g in gaps) for gaps in timeline.gaps]
    assert idle == pytest.approx([timeline.makespan - busy for busy in timeline.busy])
