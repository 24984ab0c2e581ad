"""Links, their queues, and transfers that block."""

import re
from collections import defaultdict
from itertools import pairwise

import pytest
from cost_strategies import costs_for
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from plain_simulator import Deadlock, Plain
from schedule_strategies import good_schedules

from pipert import Costs, Schedule

FORWARDS = [["0F0", "0F1", "0F2"], ["1F0", "1F1", "1F2"]]
FORK = [["0F0", "2F0"], ["1F0"], ["3F0"]]  # rank 0 sends to ranks 1 and 2, rank 1 to rank 0
# At 1B0 rank 1 wants to send a gradient, which rank 0 takes only after three more forwards.
CROSSED = [
    [*(f"0F{m}" for m in range(4)), *(f"0B{m}" for m in range(4))],
    [f"1{kind}{m}" for m in range(4) for kind in "FB"],
]


def starts(timeline):
    return {str(s.action): s.start for rank in timeline.ranks for s in rank}


def check(schedule, costs):
    timeline, plain = schedule.simulate(costs), Plain(schedule, costs).run()
    assert starts(timeline) == plain.starts
    messages = {(str(m.sender), m.destination): m for m in timeline.messages}
    assert len(messages) == len(timeline.messages)
    assert {key: m.begun for key, m in messages.items()} == plain.begun
    assert {key: m.arrived for key, m in messages.items()} == plain.arrivals
    assert {key: str(m.reader) for key, m in messages.items()} == plain.reader
    assert starts(schedule.simulate(costs, messages=False)) == plain.starts


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_times_are_those_of_a_plain_simulation_on_any_links(data):
    schedule = data.draw(good_schedules())
    check(schedule, data.draw(costs_for(schedule, skipping=data.draw(st.booleans()))))


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_times_are_those_of_a_plain_simulation_if_transfers_block(data):
    schedule = data.draw(good_schedules())
    costs = data.draw(costs_for(schedule, blocking=True, skipping=data.draw(st.booleans())))
    try:
        Plain(schedule, costs).run()
    except Deadlock:
        verdict = schedule.verify(rendezvous=True)
        assert costs.skips or verdict.defect == "deadlock"
        with pytest.raises(
            ValueError, match=rf"{re.escape(verdict.message or '-')}|whose skips have them"
        ):
            schedule.simulate(costs)
    else:
        check(schedule, costs)


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_a_link_carries_one_message_at_a_time_and_the_first_that_is_ready_first(data):
    schedule = data.draw(good_schedules())
    links = data.draw(costs_for(schedule)).links
    costs = Costs(latency=1, bandwidth=2, bytes=6, links=links)
    link_of = {tuple(edge): number for number, link in enumerate(links) for edge in link}
    used = defaultdict(list)
    for message in schedule.simulate(costs).messages:
        edge = (message.source, message.destination)
        used[link_of.get(edge, edge)].append(message)
        assert message.arrived == message.begun + 3 + 1
    for messages in used.values():
        messages.sort(key=lambda message: message.begun)
        assert all(a.begun + 3 <= b.begun for a, b in pairwise(messages))
        assert all((a.sent, a.source) <= (b.sent, b.source) for a, b in pairwise(messages))
        assert all(b.begun in (b.sent, a.begun + 3) for a, b in pairwise(messages))


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_a_link_of_several_edges_is_never_faster_than_links_of_their_own(data):
    schedule = Schedule.build("zb_h1", num_ranks=4, num_microbatches=4)
    costs = data.draw(costs_for(schedule, shared=False))
    edges = [(a, b) for a in range(4) for b in range(4) if a != b]
    same = {"latency": costs.latency, "bandwidth": costs.bandwidth, "bytes": costs.bytes}
    alone, shared = (
        schedule.simulate(Costs(**same, links=links)).makespan for links in ([], [edges])
    )
    assert alone <= shared


def test_messages_of_an_edge_queue_for_its_bandwidth():
    costs = Costs(forward=1, latency=0.5, bandwidth=1, bytes=4)
    timeline = Schedule(FORWARDS).simulate(costs)
    assert [(m.sent, m.begun, m.arrived) for m in timeline.messages] == [
        (1.0, 1.0, 5.5),
        (2.0, 5.0, 9.5),
        (3.0, 9.0, 13.5),
    ]
    assert timeline.makespan == 14.5


def test_messages_of_edges_on_one_link_queue_behind_each_other():
    schedule = Schedule(FORK, num_microbatches=1)
    costs = {"forward": [2, 1, 1, 1], "bandwidth": 1, "bytes": [3, 5, 2, 0]}
    # 0F0 ends at 2, 1F0 at 2+3+1 = 6, 2F0 at 6+5+1 = 12, 3F0 at 12+2+1 = 15
    assert schedule.simulate(Costs(**costs)).makespan == 15.0
    busy = Schedule([["0F0", "0F1"], ["1F0", "1F1"], ["2F0", "2F1"]])
    costs = Costs(forward=1, bandwidth=1, bytes=4, links=[[(0, 1), (1, 2)]])
    messages = busy.simulate(costs).messages
    assert {str(m.sender): (m.sent, m.begun, m.arrived) for m in messages} == {
        "0F0": (1.0, 1.0, 5.0),
        "0F1": (2.0, 5.0, 9.0),
        "1F0": (6.0, 9.0, 13.0),
        "1F1": (10.0, 13.0, 17.0),
    }


def test_of_messages_that_are_ready_together_the_lower_ranks_goes_first():
    schedule = Schedule([["0F0", "0F1", "0F2"], ["1F0", "1F1", "1F2"], ["2F0", "2F1", "2F2"]])
    costs = Costs(bandwidth=1, bytes=1, links=[[(1, 2), (0, 1)]])
    messages = {str(m.sender): (m.sent, m.begun) for m in schedule.simulate(costs).messages}
    assert messages["0F2"] == (3.0, 3.0)
    assert messages["1F0"] == (3.0, 4.0)


def test_latency_and_bandwidth_of_single_edges():
    costs = Costs(
        forward=1, latency={(0, 1): 2, None: 5}, bandwidth={(1, 0): 2}, bytes=8, gradient_bytes=6
    )
    timeline = Schedule([["0F0", "0B0"], ["1F0", "1B0"]]).simulate(costs)
    assert starts(timeline) == {"0F0": 0, "1F0": 3, "1B0": 4, "0B0": 4 + 2 + 5 + 3}


def test_a_transfer_that_blocks_holds_up_both_of_its_ranks():
    costs = Costs(forward=[1, 3], latency=1, blocking=True)
    timeline = Schedule(FORWARDS).simulate(costs)
    # 0F1 is done at 3, but rank 1 takes it only when 1F0 is done, at 5.
    assert starts(timeline) == {"0F0": 0, "1F0": 2, "0F1": 2, "1F1": 6, "0F2": 6, "1F2": 10}
    assert [(m.sent, m.begun, m.arrived) for m in timeline.messages] == [
        (1, 1, 2),
        (5, 5, 6),
        (9, 9, 10),
    ]


def test_neighbours_may_send_to_each_other_at_once():
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=3)
    assert schedule.verify(rendezvous=True).defect == "deadlock"
    costs = Costs(latency=0.5, blocking=True)
    assert starts(schedule.simulate(costs)) == {
        "0F0": 0,
        "0F1": 1.5,
        "0B0": 5,
        "0F2": 7,
        "0B1": 8.5,
        "0B2": 12,
        "1F0": 1.5,
        "1B0": 2.5,
        "1F1": 5,
        "1B1": 6,
        "1F2": 8.5,
        "1B2": 9.5,
    }


def test_a_schedule_that_deadlocks_if_transfers_block_is_refused_in_verifys_words():
    schedule = Schedule(CROSSED, name="crossed")
    message = schedule.verify(rendezvous=True).message
    assert schedule.simulate(Costs(latency=1)).makespan > 0
    with pytest.raises(ValueError, match=re.escape(f"bad schedule 'crossed': {message}")):
        schedule.simulate(Costs(blocking=True))
    assert "(a send waits for its receive)" in message


def test_places_of_receives_matter_if_transfers_block():
    early = [["0F0", "0SEND_F0", "0F1", "0SEND_F1"], ["1RECV_F0", "1RECV_F1", "1F0", "1F1"]]
    late = [["0F0", "0SEND_F0", "0F1", "0SEND_F1"], ["1RECV_F0", "1F0", "1RECV_F1", "1F1"]]
    costs = Costs(forward=[1, 3], latency=1, blocking=True)
    assert starts(Schedule(early).simulate(costs)) == {"0F0": 0, "0F1": 2, "1F0": 4, "1F1": 7}
    assert starts(Schedule(late).simulate(costs)) == {"0F0": 0, "0F1": 2, "1F0": 2, "1F1": 6}
    for schedule in (early, late):
        assert [str(m.sender) for m in Schedule(schedule).simulate(costs).messages] == [
            "0F0",
            "0F1",
        ]


@given(good_schedules(), st.integers(0, 3), st.integers(1, 3))
@settings(deadline=None, max_examples=100)
def test_blocking_never_helps(schedule, latency, size):
    costs = {"latency": latency, "bandwidth": 1, "bytes": size}
    try:
        blocked = schedule.simulate(Costs(**costs, blocking=True))
    except ValueError:
        reject()
    free = schedule.simulate(Costs(**costs))
    assert all(starts(free)[text] <= start for text, start in starts(blocked).items())


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (
            {"latency": {(0, 2): 1}},
            r"latency: an edge must lead from a rank to another, each from 0 to 1, got \(0, 2\)",
        ),
        ({"bandwidth": {(1, 1): 1}}, r"bandwidth: an edge must lead.*got \(1, 1\)"),
        ({"latency": {(0, 1): -1}}, r"latency of edge \(0, 1\) must be finite and .* 0, got -1"),
        ({"bandwidth": {None: float("nan")}}, "bandwidth must be finite and at least 0, got nan"),
        ({"links": [[(0, 1), (-1, 0)]]}, r"links: an edge must lead.*got \(-1, 0\)"),
        (
            {"links": [[(0, 1)], [(1, 0), (0, 1)]]},
            r"links: an edge must be on one link, once, got \(0, 1\) twice",
        ),
        ({"gradient_bytes": [1, 2, 3]}, r"gradient_bytes must be one number or 2.*got 3"),
        ({"update": -1}, "update must be finite and at least 0, got -1"),
        ({"recompute": [1, 2, 3]}, r"recompute must be one number or 2 \(num_stages\), got 3"),
        ({"weight_share": 1.5}, "weight_share must be at most 1, got 1.5"),
        ({"activation_bytes": float("inf")}, "activation_bytes must be finite and at least 0"),
    ],
)
def test_costs_that_do_not_fit_are_rejected(costs, message):
    with pytest.raises(ValueError, match=message):
        Schedule([["0F0", "0B0"], ["1F0", "1B0"]]).simulate(Costs(**costs))


def test_an_edge_that_no_message_takes_may_have_costs():
    costs = Costs(latency={(1, 0): 3}, bandwidth={(1, 0): 2}, links=[[(1, 0)], []])
    assert Schedule(FORWARDS).simulate(costs).makespan == 4.0


def test_costs_tell_what_they_were_made_of():
    costs = Costs(
        latency={(0, 1): 2},
        bandwidth=3,
        links=[[(0, 1), (1, 0)]],
        recompute=[1, 2],
        blocking=True,
    )
    assert costs.latency == {(0, 1): 2.0, None: 0.0}
    assert (costs.bandwidth, costs.recompute, costs.blocking) == (3.0, [1.0, 2.0], True)
    assert costs.links == [[(0, 1), (1, 0)]]
    assert (costs.gradient_bytes, costs.activation_bytes) == (None, None)
