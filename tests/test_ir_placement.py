import pickle

import pytest

from pipert import Placement


def test_loop_deals_the_stages_out():
    placement = Placement.loop(3, 6)
    assert placement.ranks == [0, 1, 2, 0, 1, 2]
    assert placement.stages_of(1) == [1, 4]
    assert (placement.num_ranks, placement.num_stages) == (3, 6)


def test_v_shaped_goes_up_and_down():
    assert Placement.v_shaped(3, 6).ranks == [0, 1, 2, 2, 1, 0]
    assert Placement.v_shaped(2, 8).ranks == [0, 1, 1, 0, 0, 1, 1, 0]


def test_placements_are_values():
    assert Placement.loop(2, 2) == Placement(2, [0, 1])
    assert Placement.loop(2, 4) != Placement.v_shaped(2, 4)
    assert pickle.loads(pickle.dumps(Placement.loop(2, 4))) == Placement.loop(2, 4)


@pytest.mark.parametrize("make", [Placement.loop, Placement.v_shaped])
@pytest.mark.parametrize("num_stages", [0, -2, 1, 3])
def test_num_stages_must_be_a_multiple_of_num_ranks(make, num_stages):
    expected = rf"num_stages must be a positive multiple of 2 \(num_ranks\), got {num_stages}"
    with pytest.raises(ValueError, match=expected):
        make(2, num_stages)


def test_every_rank_must_own_a_stage():
    with pytest.raises(ValueError, match="every rank must own a stage, rank 1 owns none"):
        Placement(2, [0, 0])
    with pytest.raises(ValueError, match=r"num_stages must be at least 2 \(num_ranks\), got 1"):
        Placement(2, [0])


def test_a_rank_out_of_range_is_rejected():
    with pytest.raises(ValueError, match=r"the rank of stage 1 must be in \[0, 2\), got 2"):
        Placement(2, [0, 2])


def test_an_unknown_stage_or_rank_is_an_index_error():
    placement = Placement.loop(2, 4)
    with pytest.raises(IndexError, match=r"stage must be in \[0, 4\), got 4"):
        placement.rank_of(4)
    with pytest.raises(IndexError, match=r"rank must be in \[0, 2\), got -1"):
        placement.stages_of(-1)


def test_bidirectional_holds_two_copies_that_run_towards_each_other():
    placement = Placement.bidirectional(3)
    assert placement.ranks == [0, 1, 2, 2, 1, 0]
    assert placement.num_copies == 2
    assert placement != Placement.v_shaped(3, 6)
    assert Placement.loop(3, 6).num_copies == 1
    assert pickle.loads(pickle.dumps(placement)) == placement


def test_copies_must_divide_the_stages():
    with pytest.raises(ValueError, match="num_copies must divide the number of stages, 3, got 2"):
        Placement(3, [0, 1, 2], num_copies=2)


@pytest.mark.parametrize("arguments", [(2, [False, True]), (True, [0]), (1, [0], True)])
def test_a_bool_is_neither_a_rank_nor_a_count(arguments):
    with pytest.raises(TypeError, match=r"num_ranks: int, ranks: .*\[int\], num_copies: int"):
        Placement(*arguments)
