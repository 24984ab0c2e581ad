import pytest

from pipert import Schedule, schedules

SIZES = {"num_ranks": 2, "num_microbatches": 4}


def test_the_names():
    assert schedules()[:3] == ["gpipe", "1f1b", "interleaved_1f1b"]
    assert {"eager_1f1b", "looped_bfs", "hanayo", "dualpipe_v"} < set(schedules())
    assert {"zb_h1", "zb_h2", "zb_auto", "zb_interleaved", "zb_v", "v_half", "v_min"} < set(
        schedules()
    )


@pytest.mark.parametrize("name", schedules())
def test_every_schedule_builds_verifies_and_carries_its_name(name):
    schedule = Schedule.build(name, **SIZES)
    assert schedule.name == name
    assert schedule.verify(), schedule.verify().message


@pytest.mark.parametrize("name", schedules())
def test_the_forwards_of_every_schedule_are_an_inference_schedule(name):
    sizes = {"num_ranks": 4, "num_microbatches": 8}
    forwards = Schedule.build(name, **sizes, forward_only=True)
    assert forwards == Schedule.build(name, **sizes).forward_only()
    assert forwards.verify(forward_only=True), forwards.verify(forward_only=True).message
    assert {(a.kind, a.version) for actions in forwards.actions for a in actions} == {("F", 0)}
    assert not forwards.is_asynchronous
    assert min(forwards.simulate().busy) > 0


def test_three_schedules_are_asynchronous():
    found = {name for name in schedules() if Schedule.build(name, **SIZES).is_asynchronous}
    assert found == {"pipedream", "pipedream_vertical_sync", "pipedream_2bw"}


def test_an_update_at_the_end_of_the_step_leaves_a_schedule_synchronous():
    assert not Schedule([["0F0", "0B0", "0UPDATEv1"]]).is_asynchronous
    assert Schedule([["0F0", "0B0", "0UPDATEv1", "0F1v1", "0B1v1", "0UPDATEv2"]]).is_asynchronous
    assert Schedule([["0F0", "0B0", "0UPDATEv1", "0F1", "0B1", "0UPDATEv2"]]).is_asynchronous


def test_an_unknown_name_tells_the_near_ones_and_all():
    message = r"^unknown schedule '1f1bb': did you mean '1f1b'\? known: gpipe, 1f1b, interleaved"
    with pytest.raises(ValueError, match=message):
        Schedule.build("1f1bb", **SIZES)
    with pytest.raises(ValueError, match=r"^unknown schedule '1F1B': did you mean '1f1b'\?"):
        Schedule.build("1F1B", **SIZES)
    with pytest.raises(ValueError, match=r"did you mean 'interleaved_1f1b'"):
        Schedule.build("Interleaved1F1B", **SIZES)


def test_a_name_that_is_near_nothing_gets_the_list_alone():
    with pytest.raises(ValueError, match=r"^unknown schedule 'xyzzyx'; known: gpipe, 1f1b"):
        Schedule.build("xyzzyx", **SIZES)


def test_an_unknown_option_tells_the_near_ones():
    message = r"option of schedule 'interleaved_1f1b': 'group_sise': did you mean 'group_size'\?"
    with pytest.raises(ValueError, match=message):
        Schedule.build("interleaved_1f1b", **SIZES, group_sise=2)
    with pytest.raises(ValueError, match=r"option of schedule '1f1b': 'group_size'; known: none"):
        Schedule.build("1f1b", **SIZES, group_size=2)


def test_an_option_of_another_type_is_a_type_error():
    with pytest.raises(TypeError, match="option 'group_size' must be an int, got str"):
        Schedule.build("interleaved_1f1b", **SIZES, group_size="2")
    with pytest.raises(TypeError, match="option 'group_size' must be an int, got bool"):
        Schedule.build("interleaved_1f1b", **SIZES, group_size=True)


@pytest.mark.parametrize("name", ["num_ranks", "num_microbatches", "num_stages"])
def test_a_bool_is_no_size(name):
    with pytest.raises(TypeError, match="num_ranks: int, num_microbatches: int, num_stages: int"):
        Schedule.build("1f1b", **{**SIZES, name: True})


def test_an_option_that_is_none_is_not_given():
    given = Schedule.build("interleaved_1f1b", **SIZES, group_size=None)
    assert given == Schedule.build("interleaved_1f1b", **SIZES)


@pytest.mark.parametrize("name", schedules())
@pytest.mark.parametrize("size", ["num_ranks", "num_microbatches", "num_stages"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_rejected(name, size, value):
    with pytest.raises(ValueError, match=f"{size} must be at least 1, got {value}"):
        Schedule.build(name, **{**SIZES, size: value})


@pytest.mark.parametrize("name", schedules())
def test_millions_of_actions_are_built_and_right(name):
    schedule = Schedule.build(name, num_ranks=256, num_microbatches=4096)
    assert (schedule.num_ranks, schedule.num_microbatches) == (256, 4096)
    verdict = schedule.verify()
    assert verdict, verdict.message


@pytest.mark.parametrize("name", schedules())
def test_a_size_beyond_memory_is_told_not_tried(name):
    message = "num_stages x num_microbatches must be at most 100000000, got 2 x 2000000000"
    with pytest.raises(ValueError, match=message):
        Schedule.build(name, num_ranks=2, num_microbatches=2_000_000_000)
