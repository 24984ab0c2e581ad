"""chimera: two pipelines in opposite directions over two copies of the model."""

import pytest
from schedule_tables import drawn, in_comment
from torch import nn

import pipert
from pipert import Costs, Placement, Schedule

SIZES = [(2, 2), (2, 6), (4, 4), (4, 8), (4, 10), (6, 12), (8, 8), (8, 32)]


def build(p, m, **options):
    return Schedule.build("chimera", num_ranks=p, num_microbatches=m, **options)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("chimera.cpp")
    assert len(table) == 4
    assert drawn(build(4, 4), with_stage=True) == table


def test_it_says_that_there_are_two_copies_of_the_model():
    placement = build(4, 4).placement
    assert placement == Placement.bidirectional(4)
    assert placement.num_copies == 2
    assert placement.ranks == [0, 1, 2, 3, 3, 2, 1, 0]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_every_size_verifies_and_each_half_of_the_microbatches_passes_one_copy(p, m):
    schedule = build(p, m)
    assert schedule.verify(), schedule.verify().message
    first = {a.microbatch for rank in schedule.actions for a in rank if a.stage < p}
    second = {a.microbatch for rank in schedule.actions for a in rank if a.stage >= p}
    assert len(first) == len(second) == m // 2
    assert first | second == set(range(m))


@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 4), (4, 8), (8, 8), (8, 32), (16, 48)])
def test_bubble_where_a_backward_takes_as_long_as_a_forward(p, m):
    bubble = build(p, m).simulate(Costs(forward=1, input=0.5, weight=0.5)).bubble
    assert bubble == pytest.approx([(p - 2) / (2 * m + p - 2)] * p)


@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 4), (4, 8), (8, 16), (16, 48)])
def test_peak_activations_are_between_half_and_all_of_the_ranks(p, m):
    peaks = build(p, m).simulate().peak_memory
    assert min(peaks) >= p // 2
    assert max(peaks) <= p


@pytest.mark.parametrize(
    ("p", "m", "options", "message"),
    [
        (3, 4, {}, "num_ranks must be even for schedule 'chimera', got 3"),
        (4, 5, {}, "num_microbatches must be even for schedule 'chimera', got 5"),
        (4, 4, {"num_stages": 4}, "num_stages must be 8 .* for schedule 'chimera', got 4"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(p, m, options, message):
    with pytest.raises(ValueError, match=message):
        build(p, m, **options)


def test_a_microbatch_that_misses_a_stage_of_its_copy_is_a_defect():
    rows = [[str(a) for a in rank] for rank in build(2, 2).actions]
    rows[0].remove("3F1")
    verdict = Schedule(rows, placement=Placement.bidirectional(2)).verify()
    assert verdict.defect == "missing"
    assert "F1 is missing" in verdict.message


def test_actions_of_a_microbatch_in_the_other_copy_are_a_defect():
    rows = [[str(a) for a in rank] for rank in build(2, 2).actions]
    rows[0].append("3F0")
    verdict = Schedule(rows, placement=Placement.bidirectional(2)).verify()
    assert verdict.defect == "doubled"
    assert "passes copy" in verdict.message


def test_a_pipeline_takes_the_stages_of_one_copy():
    schedule = build(4, 8)
    stages = [nn.Linear(2, 2) for _ in range(4)]
    with pipert.Pipeline(stages, schedule=schedule, num_microbatches=8) as pipe:
        assert list(pipe.stages) == list(range(8))
    with pytest.raises(ValueError, match="is for num_stages=4, the pipeline has 8"):
        pipert.Pipeline(stages * 2, schedule=schedule, num_microbatches=8)
