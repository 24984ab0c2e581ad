"""Peak memory of a timeline, in activations and in bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_strategies import good_schedules

from pipert import Costs, Schedule, Timeline


def schedule_of(*ranks):
    return Schedule([rank.split() for rank in ranks])


def peaks(schedule, **costs):
    timeline = schedule.simulate(Costs(**costs))
    return timeline.peak_memory, timeline.peak_bytes


def alive_bytes(actions, size_of, weight_share):
    """The peak of one rank, by the rule of docs/schedules.md."""
    alive, peak = 0.0, 0.0
    for action in actions:
        size = size_of[action.stage]
        alive += size if action.kind == "F" else 0
        peak = max(peak, alive)
        stays = {"B": 0, "I": weight_share, "W": 0}.get(action.kind)
        was = weight_share if action.kind == "W" else 1
        alive -= 0 if stays is None else size * (was - stays)
    return peak


@given(good_schedules(), st.data(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
@settings(deadline=None, max_examples=100)
def test_peak_bytes_follow_each_activation_from_f_to_its_last_half(schedule, data, weight_share):
    number = st.integers(0, 64)
    sizes = data.draw(st.lists(number, min_size=schedule.num_stages, max_size=schedule.num_stages))
    _, found = peaks(schedule, activation_bytes=sizes, weight_share=weight_share)
    assert found == [alive_bytes(actions, sizes, weight_share) for actions in schedule.actions]


@given(good_schedules())
@settings(deadline=None, max_examples=30)
def test_one_byte_each_is_the_peak_in_activations(schedule):
    in_units, in_bytes = peaks(schedule, activation_bytes=1)
    assert in_units == in_bytes


def test_without_their_size_nothing_is_told_in_bytes():
    assert peaks(schedule_of("0F0 0B0")) == ([1], None)
    assert Timeline.from_spans([[]]).peak_bytes is None


def test_what_is_computed_again_keeps_the_stages_input_alone():
    kept = schedule_of("0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1")
    again = schedule_of("0F0 0F1 0R0 0B0 0R1 0B1", "1F0 1F1 1R0 1B0 1R1 1B1")
    costs = {"activation_bytes": 100, "bytes": 7}
    assert peaks(kept, **costs) == ([2, 2], [200, 200])
    # Rank 0 has no message for its input; rank 1 holds one input while it does the other's F or R.
    assert peaks(again, **costs) == ([1, 1], [100, 107])


def test_what_is_offloaded_is_not_there():
    schedule = schedule_of("0F0 0OFFLOAD0 0F1 0F2 0B2 0B1 0RELOAD0 0B0")
    assert peaks(schedule, activation_bytes=10) == ([2], [20])
    assert peaks(schedule, activation_bytes=10, offload=1, reload=1) == ([2], [20])
    both = schedule_of(
        "0F0 0F1 0B1 0B0", "1F0 1OFFLOAD0 1F1 1OFFLOAD1 1RELOAD1 1R1 1B1 1RELOAD0 1R0 1B0"
    )
    assert peaks(both, activation_bytes=10, bytes=3) == ([2, 1], [20, 10])


def test_slices_share_a_microbatchs_bytes():
    schedule = schedule_of("0F0s0 0F0s1 0B0s1 0B0s0")
    assert peaks(schedule, activation_bytes=10) == ([2], [10])


def test_an_inference_schedule_keeps_no_bytes():
    schedule = Schedule.build("gpipe", num_ranks=3, num_microbatches=5).forward_only()
    assert peaks(schedule, activation_bytes=[1, 2, 3]) == ([1, 1, 1], [1, 2, 3])


def test_drawings_tell_bytes_if_they_are_known():
    timeline = schedule_of("0F0 0F1 0B0 0B1").simulate(Costs(activation_bytes=625e6))
    assert "  1.25 GB" in timeline.render()
    assert timeline.render().splitlines()[0].endswith("bubble     peak")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (2**40, "1.1 TB")],
)
def test_bytes_are_told_with_three_digits(size, text):
    timeline = schedule_of("0F0 0B0").simulate(Costs(activation_bytes=size))
    assert timeline.render().splitlines()[1].endswith(f"  {text}")
