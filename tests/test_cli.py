"""The command line answers, tells mistakes in one line, and ends with the documented code."""

import importlib
import io
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pipert
from pipert.cli import main

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "cli.md").read_text()
SIZES = ["--ranks", "2", "--microbatches", "4"]
FILES = {
    "good.csv": "0F0,0F1,0B0,0B1\n1F0,1F1,1B0,1B1\n",
    "swapped.csv": "0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n",
    "forwards.csv": "0F0,0F1\n1F0,1F1\n",
    "broken.csv": "0F0,0B0\n1F0,what\n",
    "empty.csv": "",
    "bytes.csv": b"0F0,\xff\xfe\n1F0\n",
    "plain.txt": "0F0,0B0\n",
    "broken.json": "{}",
    "bytes.json": b'{"format": "\xff"}',
    "bytes.txt": b'{"format": "\xff"}',
    "printed": "f0 F0 B0 W0 b0 w0\nf0 F0 B0 b0 W0 w0\n",
}
DEADLOCK = "deadlock: rank 0 at 0B0 waits for 1B0 on rank 1, which at 1F1 waits for 0F1 on rank 0"
SIZES_JSON = {"num_ranks": 2, "num_stages": 2, "num_microbatches": 2}
DEADLOCK_PLACES = {
    "places": [
        {"rank": 0, "position": 1, "action": "0B0", "role": "culprit", "note": "waits for 1B0"},
        {"rank": 1, "position": 1, "action": "1F1", "role": "culprit", "note": "waits for 0F1"},
        {"rank": 1, "position": 2, "action": "1B0", "role": "related", "note": ""},
        {"rank": 0, "position": 2, "action": "0F1", "role": "related", "note": ""},
    ],
    "waits": [
        {"source": 0, "target": 2, "reason": "message"},
        {"source": 1, "target": 3, "reason": "message"},
    ],
}
BYTES_JSON = r"bytes.(json|txt): row 1, column 12, format: expected UTF-8 at"
NOT_OK = f"""not ok: {DEADLOCK}
rank 0 | 0F0 [0B0] <0F1> 0B1
             waits for 1B0
rank 1 | 1F0 [1F1] <1B0> 1B1
             waits for 0F1
"""


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def call(capsys):
    """Runs `pipert schedule ...` and returns (exit code, stdout, stderr)."""

    def run(*words):
        code = main(["schedule", *words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def ask(call):
    """Runs it with --json and returns what a program would read."""

    def run(*words):
        code, out, _ = call(*words, "--json")
        assert out.count("\n") == 1
        return code, json.loads(out)

    return run


# --- what each command answers ------------------------------------------------------------------


def test_list_names_what_can_be_built(call, ask):
    assert call("list") == (0, "\n".join(pipert.schedules()) + "\n", "")
    assert ask("list") == (0, {"schedules": [{"name": name} for name in pipert.schedules()]})


def test_show_draws_as_render_does(call):
    schedule = pipert.Schedule.build(
        "interleaved_1f1b", num_ranks=2, num_microbatches=4, num_stages=6, group_size=2
    )
    words = ["interleaved_1f1b", *SIZES, "--stages", "6", "--option", "group_size=2"]
    code, out, _ = call("show", *words, "--width", "90", "--forward", "2")
    head, _, drawing = out.partition("\n")
    assert (code, head) == (0, "interleaved_1f1b: 2 ranks, 6 stages, 4 microbatches")
    assert drawing == schedule.render(costs=pipert.Costs(forward=2), width=90)


def test_show_prints_actions_and_programs(call, ask):
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=4)
    programs = pipert.lower(schedule)
    assert str(schedule).strip() in call("show", "1f1b", *SIZES, "--actions")[1]
    out = call("show", "1f1b", *SIZES, "--program")[1]
    assert all(str(program).strip() in out for program in programs)
    _, answer = ask("show", "1f1b", *SIZES, "--program")
    assert answer["actions"] == [[str(action) for action in rank] for rank in schedule.actions]
    assert answer["placement"] == [0, 1]
    assert [len(each["instructions"]) for each in answer["programs"]] == [*map(len, programs)]
    assert answer["programs"][0]["instructions"][2]["action"] == "0F0"


def test_show_writes_a_picture(call):
    assert call("show", "1f1b", *SIZES, "--svg", "drawn.svg")[0] == 0
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=4)
    assert Path("drawn.svg").read_text() == schedule.render("expected.svg")
    assert call("show", "1f1b", *SIZES, "--svg", "drawn.svg", "--transfers")[0] == 0
    assert Path("drawn.svg").read_text() == schedule.render("expected.svg", transfers=True)


def test_show_writes_a_png_or_names_the_extra(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    code, _, error = call("show", "1f1b", *SIZES, "--png", "drawn.png")
    assert (code, "pipert[png]" in error) == (2, True)


def test_verify_says_ok_and_ends_with_0(call, ask):
    assert call("verify", "good.csv") == (0, "ok: good: 2 ranks, 2 stages, 2 microbatches\n", "")
    good = {"ok": True, "defect": None, "message": "", "counterexample": None}
    assert ask("verify", "good.csv") == (0, {"name": "good", **SIZES_JSON, **good})
    assert call("verify", "1f1b", *SIZES)[0] == 0


def test_verify_prints_the_counterexample_and_ends_with_1(call, ask):
    assert call("verify", "swapped.csv") == (1, NOT_OK, "")
    bad = {
        "ok": False,
        "defect": "deadlock",
        "message": DEADLOCK,
        "counterexample": DEADLOCK_PLACES,
    }
    assert ask("verify", "swapped.csv") == (1, {"name": "swapped", **SIZES_JSON, **bad})


def test_verify_draws_a_counterexample_and_nothing_else(call):
    assert call("verify", "swapped.csv", "--svg", "wrong.svg") == (1, NOT_OK, "")
    assert Path("wrong.svg").read_text().startswith("<svg")
    assert call("verify", "good.csv", "--svg", "right.svg")[0] == 0
    assert not Path("right.svg").exists()


def test_verify_writes_a_png_or_names_the_extra(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    code, _, error = call("verify", "swapped.csv", "--png", "wrong.png")
    assert (code, "pipert[png]" in error) == (2, True)


def test_verify_holds_a_schedule_to_memory_and_tied_stages(call):
    gpipe = ["gpipe", *SIZES]
    assert call("verify", *gpipe, "--memory", "4")[0] == 0
    code, printed, _ = call("verify", *gpipe, "--memory", "4,3")
    assert (code, "rank 1 holds activations of 4" in printed) == (1, True)
    assert call("verify", *gpipe, "--tied-stages", "0,1")[0] == 0
    Path("half.csv").write_text("0F0,0B0,0REDUCE_GRAD\n1F0,1B0\n")
    assert call("verify", "half.csv")[0] == 0
    code, printed, _ = call("verify", "half.csv", "--tied-stages", "0,1")
    assert (code, "1REDUCE_GRAD is missing on rank 1" in printed) == (1, True)


def test_verify_counts_the_share_of_an_activation_that_search_counts(call):
    sizes = ["--ranks", "4", "--microbatches", "8", "--memory", "5", "--weight-share", "0.4"]
    costs = ["--weight", "2", "--iterations", "500", "--out", "x.csv"]
    assert call("search", *sizes, *costs)[0] == 0
    assert call("verify", "x.csv", *sizes[4:])[0] == 0
    Path("late.csv").write_text("0F0,0I0,0F1,0I1,0W0,0W1\n")
    assert call("verify", "late.csv", "--memory", "1.5", "--weight-share", "0.4")[0] == 0
    code, printed, _ = call("verify", "late.csv", "--memory", "1.5")
    assert (code, "rank 0 holds activations of 2" in printed) == (1, True)


def test_verify_takes_into_account_how_messages_are_sent(call):
    looped = ["interleaved_1f1b", *SIZES]
    assert call("verify", *looped)[0] == 0
    assert call("verify", *looped, "--rendezvous")[0] == 1
    assert call("verify", *looped, "--capacity", "0")[0] == 1
    assert call("verify", *looped, "--capacity", "4")[0] == 0


def test_verify_takes_forwards_alone_only_if_asked_to(call):
    assert call("verify", "forwards.csv")[0] == 1
    assert call("verify", "forwards.csv", "--forward-only")[0] == 0


def test_a_schedule_is_read_from_stdin(call, monkeypatch):
    bad = io.TextIOWrapper(io.BytesIO(FILES["swapped.csv"].encode()))
    monkeypatch.setattr(sys, "stdin", bad)
    assert call("verify", "-") == (1, NOT_OK, "")


def test_the_format_of_a_file_may_be_said(call, monkeypatch):
    assert call("verify", "plain.txt", "--from", "csv")[0] == 0
    assert call("convert", "good.csv", "named.json") == (0, "", "")
    Path("named.json").rename("named.txt")
    ok = "ok: good: 2 ranks, 2 stages, 2 microbatches\n"
    assert call("verify", "named.txt", "--from", "json") == (0, ok, "")
    data = Path("named.txt").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert call("verify", "-", "--from", "json") == (0, ok, "")


def test_what_the_zero_bubble_authors_print_is_read(call):
    words = ["printed", "--from", "zero-bubble"]
    ok = "ok: printed: 2 ranks, 4 stages, 1 microbatches\n"
    assert call("verify", *words) == (0, ok, "")
    out = call("convert", *words, "-")[1]
    assert out == "0F0,3F0,3I0,3W0,0I0,0W0\n1F0,2F0,2I0,1I0,2W0,1W0\n"
    code, out, _ = call("convert", *words, "-", "--placement", "0,1,0,1")
    assert (code, out.splitlines()[0]) == (0, "0F0,2F0,2I0,2W0,0I0,0W0")


@pytest.mark.parametrize("name", pipert.schedules())
def test_the_forwards_alone_of_every_schedule(call, ask, name):
    words = [name, "--ranks", "4", "--microbatches", "8", "--forward-only"]
    assert call("verify", *words)[0] == 0
    _, answer = ask("simulate", *words)
    kinds = {re.sub("[^A-Z]", "", each["action"]) for rank in answer["ranks"] for each in rank}
    assert kinds == {"F"}
    assert call("convert", *words, "out.json") == (0, "", "")
    assert call("verify", "out.json", "--forward-only")[0] == 0


def test_the_forwards_alone_of_a_file(call, ask):
    assert call("convert", "good.csv", "-", "--forward-only")[1] == FILES["forwards.csv"]
    assert call("verify", "good.csv", "--forward-only")[0] == 1  # its backwards are too many
    sizes = ["--ranks", "2", "--microbatches", "2"]
    _, answer = ask("compare", "good.csv", "1f1b", *sizes, "--forward-only")
    assert [each["makespan"] for each in answer["schedules"]] == [3, 3]


def test_simulate_prints_what_the_timeline_says(call, ask):
    costs = pipert.Costs(forward=[1, 2], input=0.5, weight=0.25, latency=0.5, bandwidth=8, bytes=2)
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=4)
    timeline = schedule.simulate(costs)
    words = ["simulate", "1f1b", *SIZES, "--forward", "1,2", "--input", ".5", "--weight", ".25"]
    words += ["--latency", "0.5", "--bandwidth", "8", "--bytes", "2"]
    code, answer = ask(*words)
    assert code == 0
    for name in ("makespan", "bubble", "spans", "busy", "peak_memory"):
        assert answer[name] == getattr(timeline, name)
    assert [[each["action"] for each in rank] for rank in answer["ranks"]] == [
        [str(action) for action in rank] for rank in schedule.actions
    ]
    last = timeline.critical_path[-1]
    expected = {"rank": 0, "action": "0B3", "start": last.start, "end": last.end}
    assert answer["critical_path"][-1] == expected
    lines = call(*words)[1].splitlines()
    assert lines[1] == f"makespan {timeline.makespan:g}"
    assert lines[3].split()[1:3] == [f"{timeline.busy[0]:g}", f"{timeline.spans[0]:g}"]


def test_simulate_takes_all_costs_and_tells_the_reason_of_every_gap(call, ask):
    costs = pipert.Costs(
        recompute=3,
        update=0.5,
        reduce=[1, 2],
        latency={(0, 1): 0.25, None: 0.5},
        bandwidth={(1, 0): 4, None: 8},
        bytes=2,
        gradient_bytes=3,
        links=[[(0, 1), (1, 0)]],
        activation_bytes=[100, 200],
        weight_share=0.5,
    )
    timeline = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=4).simulate(costs)
    words = "--recompute 3 --update 0.5 --reduce 1,2 --latency 0.5 --latency-of 0-1=0.25"
    words += " --bandwidth 8 --bandwidth-of 1-0=4 --bytes 2 --gradient-bytes 3 --link 0-1,1-0"
    words += " --activation-bytes 100,200 --weight-share 0.5"
    words = ["simulate", "1f1b", *SIZES, *words.split()]
    code, answer = ask(*words)
    assert code == 0
    for name in ("makespan", "span_bubble", "peak_bytes"):
        assert answer[name] == getattr(timeline, name)
    told = [gap.reason for gaps in timeline.gaps for gap in gaps]
    assert [gap["reason"] for gaps in answer["gaps"] for gap in gaps] == told
    assert [message["arrived"] for message in answer["messages"]] == [
        message.arrived for message in timeline.messages
    ]
    lines = call(*words, "--gaps")[1].splitlines()
    assert lines[3].split()[-1] == "200"
    assert [line.split(maxsplit=3)[3] for line in lines[6:]] == told


def test_simulate_takes_what_stages_exchange_beyond_their_neighbours(ask):
    costs = pipert.Costs(bandwidth=2, skips=[(0, [1, 2], 3), (2, 0, 4)])
    timeline = pipert.Schedule.build("1f1b", num_ranks=3, num_microbatches=2).simulate(costs)
    words = "simulate 1f1b --ranks 3 --microbatches 2 --bandwidth 2 --skip 0-1,2=3 --skip 2-0=4"
    code, answer = ask(*words.split())
    assert code == 0
    assert [(m["source"], m["destination"], m["arrived"]) for m in answer["messages"]] == [
        (m.source, m.destination, m.arrived) for m in timeline.messages
    ]
    assert len(answer["messages"]) == 2 * (4 + 2)


def test_a_schedule_that_deadlocks_if_transfers_block_is_refused_with_1(call, ask):
    rows = [[f"0{kind}{m}" for kind in "FB" for m in range(4)]]
    rows += [[f"1{kind}{m}" for m in range(4) for kind in "FB"]]
    Path("eager.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    assert call("simulate", "eager.csv")[0] == 0
    code, _, err = call("simulate", "eager.csv", "--blocking")
    assert (code, "bad schedule 'eager': deadlock: " in err) == (1, True)
    words = ["--ranks", "2", "--microbatches", "4", "--blocking"]
    _, answer = ask("compare", "eager.csv", "1f1b", *words)
    assert [each["name"] for each in answer["schedules"]] == ["1f1b"]
    assert "deadlock" in answer["unfit"][0]["reason"]


def test_simulate_and_show_refuse_a_schedule_that_cannot_run_with_1(call):
    for command in (["simulate"], ["show"], ["show", "--program"]):
        code, out, err = call(*command, "swapped.csv")
        assert (code, out) == (1, "")
        assert err == f"pipert schedule {command[0]}: error: bad schedule 'swapped': {DEADLOCK}\n"
    assert call("show", "swapped.csv", "--actions")[0] == 0


def test_convert_writes_what_can_be_read_back(call, ask):
    assert call("convert", "1f1b", "out.csv", *SIZES) == (0, "", "")
    built = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=4)
    assert pipert.Schedule.from_csv("out.csv").actions == built.actions
    assert call("convert", "good.csv", "-") == (0, FILES["good.csv"], "")
    assert ask("convert", "good.csv", "a.csv")[1] == {"name": "good", **SIZES_JSON, "out": "a.csv"}
    assert call("convert", "dualpipe", "out.json", *SIZES) == (0, "", "")
    built = pipert.Schedule.build("dualpipe", num_ranks=2, num_microbatches=4)
    again = pipert.Schedule.from_json("out.json")
    assert (again, again.name) == (built, "dualpipe")
    assert call("convert", "out.json", "again.json") == (0, "", "")
    assert Path("out.json").read_bytes() == Path("again.json").read_bytes()


def test_convert_overwrites_only_if_forced(call):
    code, out, err = call("convert", "good.csv", "swapped.csv")
    assert (code, out) == (2, "")
    assert "swapped.csv: the file is there already, --force overwrites it" in err
    assert Path("swapped.csv").read_text() == FILES["swapped.csv"]
    assert call("convert", "good.csv", "swapped.csv", "--force") == (0, "", "")
    assert Path("swapped.csv").read_text() == FILES["good.csv"]


def test_compare_takes_all_schedules_and_puts_the_best_first(ask):
    code, answer = ask("compare", "--ranks", "4", "--microbatches", "8")
    named = [each["name"] for part in ("schedules", "unfit") for each in answer[part]]
    assert (code, sorted(named)) == (0, sorted(pipert.schedules()))
    synchronous = [each for each in answer["schedules"] if not each["asynchronous"]]
    spans = [each["makespan"] for each in synchronous]
    assert spans == pytest.approx(sorted(spans))
    assert {each["weight_versions"] for each in synchronous} == {1}


def test_compare_puts_asynchronous_schedules_last_and_says_so(call, ask):
    words = [
        "compare",
        "pipedream",
        "pipedream_2bw",
        "gpipe",
        "--ranks",
        "4",
        "--microbatches",
        "8",
    ]
    _, answer = ask(*words)
    results = [(each["name"], each["asynchronous"]) for each in answer["schedules"]]
    assert results == [("gpipe", False), ("pipedream", True), ("pipedream_2bw", True)]
    assert [each["weight_versions"] for each in answer["schedules"]] == [1, 4, 2]
    out = call(*words, "--memory", "3")[1]
    assert re.search(
        "pipedream .* asynchronous, 4 versions of the weights; over 3 of memory\n", out
    )


def test_compare_gives_every_schedule_the_same_model(ask):
    """Two stages a rank take half the time each: without a bubble all would take as long."""
    words = ["compare", "1f1b", "interleaved_1f1b", "--ranks", "4", "--microbatches", "8"]
    _, answer = ask(*words, "--forward", "2", "--memory", "4")
    looped, plain = answer["schedules"]
    assert (looped["name"], plain["name"]) == ("interleaved_1f1b", "1f1b")
    assert (looped["num_stages"], plain["num_stages"]) == (8, 4)
    assert plain["makespan"] == (8 + 3) * 4  # (m + p - 1) T
    assert looped["makespan"] == 8 * 4 + 3 * 4 / 2  # the bubble is (p - 1) T / v
    assert (looped["peak_memory"], plain["peak_memory"]) == (11 / 2, 4)
    assert (looped["over_memory"], plain["over_memory"]) == (True, False)


def test_compare_with_stages_takes_costs_of_each_stage(ask):
    words = ["compare", "interleaved_1f1b", "1f1b", *SIZES, "--stages", "4"]
    code, answer = ask(*words, "--forward", "1,2,3,4")
    schedule = pipert.Schedule.build(
        "interleaved_1f1b", num_ranks=2, num_microbatches=4, num_stages=4
    )
    timeline = schedule.simulate(pipert.Costs(forward=[1, 2, 3, 4]))
    (only,) = answer["schedules"]
    assert (code, only["makespan"]) == (0, timeline.makespan)
    assert only["peak_memory"] == max(timeline.peak_memory)
    (unfit,) = answer["unfit"]
    assert unfit["name"] == "1f1b"
    assert unfit["reason"].startswith("--stages must be 2 (--ranks) for schedule '1f1b', got 4")


def test_compare_takes_stages_of_one_copy_of_the_model(call, ask):
    words = ["compare", "dualpipe", "1f1b", "zb_v", "--ranks", "4", "--microbatches", "8"]
    for stages in ([], ["--stages", "4"]):
        _, answer = ask(*words, *stages)
        best = answer["schedules"][0]
        assert (best["name"], best["num_stages"], best["num_copies"]) == ("dualpipe", 4, 2)
        assert best["makespan"] == 25
        assert {each["num_copies"] for each in answer["schedules"][1:]} == {1}
        out = call(*words, *stages)[1]
        assert re.search(r"^dualpipe +4 +25 .* two copies of the weights$", out, re.MULTILINE)
        assert out.count("copies of the weights") == 1
    _, answer = ask(*words, "--stages", "8")
    assert [each["name"] for each in answer["schedules"]] == ["zb_v"]
    reasons = {each["name"]: each["reason"] for each in answer["unfit"]}
    assert reasons["dualpipe"] == ("--stages must be 4, of each of 2 copies of the model, got 8")


def test_compare_takes_costs_of_the_stages_of_one_copy(ask):
    words = ["compare", "chimera", "both.json", "--ranks", "2", "--microbatches", "4"]
    schedule = pipert.Schedule.build("chimera", num_ranks=2, num_microbatches=4)
    schedule.to_json("both.json")
    _, answer = ask(*words, "--stages", "2", "--forward", "1,5")
    expected = schedule.simulate(pipert.Costs(forward=[1, 5, 1, 5])).makespan
    results = [(each["name"], each["num_stages"]) for each in answer["schedules"]]
    assert results == [("both.json", 2), ("chimera", 2)]
    assert [each["makespan"] for each in answer["schedules"]] == [expected, expected]
    _, answer = ask(*words, "--stages", "4")
    reasons = {each["name"]: each["reason"] for each in answer["unfit"]}
    assert reasons["both.json"] == "--stages must be 2 for this file, got 4"


def test_compare_tells_the_reason_that_no_number_of_stages_mends(ask):
    _, answer = ask("compare", "dualpipe", "--ranks", "4", "--microbatches", "7", "--stages", "4")
    assert "--microbatches" in answer["unfit"][0]["reason"]


def test_compare_makes_zb_auto_for_the_costs_and_memory(ask):
    sizes = ["--ranks", "4", "--microbatches", "8", "--memory", "6"]
    times = ["--input", "1.5", "--weight", "0.5", "--latency", "0.1"]
    for stages in ([], ["--stages", "4"]):
        _, answer = ask("compare", "zb_auto", "zb_h1", *sizes, *times, *stages)
        best = answer["schedules"][0]
        assert (best["name"], f"{best['makespan']:g}") == ("zb_auto", "29.6")
        assert (best["peak_memory"], best["over_memory"]) == (6, False)
        built = pipert.Schedule.build("zb_auto", num_ranks=4, num_microbatches=8, **best["options"])
        costs = pipert.Costs(input=1.5, weight=0.5, latency=0.1)
        assert built.simulate(costs).makespan == best["makespan"]
    _, found = ask("search", *sizes, *times, "--iterations", "10")
    assert found["seeds"][0] == {"name": "zb_auto", "value": best["makespan"]}
    assert found["options"] == best["options"]


def test_compare_counts_memory_as_verify_does(ask):
    Path("late.csv").write_text("0F0,0I0,0F1,0I1,0W0,0W1\n")
    words = ["compare", "late.csv", "--ranks", "1", "--microbatches", "2", "--memory", "1.5"]
    code, answer = ask(*words, "--weight-share", "0.4")
    assert (code, answer["schedules"][0]["over_memory"]) == (0, False)
    code, answer = ask(*words)
    assert (code, answer["schedules"][0]["over_memory"]) == (1, True)
    words = ["compare", "zb_h1", "zb_auto", *SIZES, "--stages", "2", "--memory", "2"]
    code, answer = ask(*words, "--weight-share", "0.2,0.4")  # the largest counts
    assert (code, answer["unfit"]) == (0, [])


def test_compare_ends_with_1_if_all_are_over_the_memory(call, ask):
    words = ["compare", "--ranks", "4", "--microbatches", "8"]
    code, answer = ask(*words, "--memory", "0.5")
    assert code == 1
    assert {each["over_memory"] for each in answer["schedules"]} == {True}
    assert call(*words, "--memory", "2")[0] == 0  # v_min


def test_compare_ends_with_1_if_no_schedule_fits(call):
    code, out, err = call("compare", "good.csv", "swapped.csv", "--ranks", "2", *SIZES[2:])
    assert (code, err) == (1, "")
    assert "  good.csv: --microbatches must be 2 for this file, got 4\n" in out
    code, out, _ = call("compare", "swapped.csv", "--ranks", "2", "--microbatches", "2")
    assert (code, f"  swapped.csv: bad schedule 'swapped': {DEADLOCK}\n" in out) == (1, True)


def test_search_prints_the_value_and_its_bound_and_writes_the_schedule(call, ask):
    words = ("search", "--ranks", "4", "--microbatches", "6", "--memory", "4", "--iterations", "50")
    code, answer = ask(*words, "--out", "found.csv")
    assert code == 0
    found = pipert.Schedule.from_csv("found.csv")
    assert found.verify(memory_limit=4)
    assert answer["value"] == answer["makespan"] == found.simulate().makespan
    assert answer["bound"] <= answer["value"] <= min(seed["value"] for seed in answer["seeds"])
    assert call(*words, "--out", "found.json")[0] == 0
    assert pipert.Schedule.from_json("found.json").actions == found.actions
    code, out, err = call(*words, "--out", "found.csv")
    assert (code, out) == (2, "")
    assert "found.csv: the file is there already, --force overwrites it" in err
    code, out, _ = call(*words, "--out", "found.csv", "--force")
    assert code == 0
    assert f"makespan {answer['value']:g} by {answer['source']}, bound {answer['bound']:g}" in out


def test_search_takes_limits_by_rank_spans_and_chunks(ask):
    words = ("--microbatches", "4", "--iterations", "20")
    code, answer = ask("search", "--ranks", "2", *words, "--memory", "2,1", "--objective", "span")
    assert (code, answer["value"]) == (0, max(answer["spans"]))
    assert answer["peak_memory"] <= [2, 1]
    code, answer = ask(
        "search", "--ranks", "2", *words, "--placement", "v", "--weight-share", "0.4"
    )
    assert (code, answer["placement"]) == (0, [0, 1, 1, 0])


def test_search_starts_from_exact_patterns_if_asked_to(ask):
    words = ["search", "--ranks", "2", "--microbatches", "5", "--stages", "4", "--memory", "5"]
    code, answer = ask(*words, "--exact", "--iterations", "50")
    assert code == 0
    patterns = [seed["value"] for seed in answer["seeds"] if seed["name"] == "periodic"]
    assert len(patterns) == 2  # a loop and a V
    assert answer["value"] <= min(patterns)
    _, without = ask(*words, "--iterations", "50")
    assert "periodic" not in {seed["name"] for seed in without["seeds"]}


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("show 1f1b --ranks 0 --microbatches 4", "--ranks: expected an integer from 1 to.*got '0'"),
        ("show 1f1b --ranks 2 --microbatches 4.5", "--microbatches: expected an int.*got '4.5'"),
        ("show 1f1b --ranks 99999999999 --microbatches 1", "--ranks: expected.*got '99999999999'"),
        ("show 1f1b --ranks 2000000000 --microbatches 2000000000", "--stages.*must be at most"),
        ("show 1f1b --ranks 2", "--microbatches: expected with the name of a schedule, got none"),
        ("show 1f1b --ranks 2 --microbatches 4 --stages 3", r"--stages must be 2 \(--ranks\).*3"),
        ("show 1f1b --ranks 2 --microbatches 4 --width 39", "--width: expected .* 40 to.*got '39'"),
        ("show 1f1b --ranks 2 --microbatches 4 --svg a.png", "--svg: expected.*svg, got 'a.png'"),
        ("show 1f1b --ranks 2 --microbatches 4 --svg no/a.svg", "no/a.svg: No such file"),
        ("show 1f1b --ranks 2 --microbatches 4 --option a", "--option: expected NAME=INTEGER.*'a'"),
        ("show 1f1b --ranks 2 --microbatches 4 --option a=b", "expected NAME=INTEGER, got 'a=b'"),
        (f"show 1f1b --ranks 2 --microbatches 4 --option a={2**63}", "expected NAME=INTEGER"),
        ("show 1f1b --ranks 2 --microbatches 4 --option a=1", "unknown option.*1f1b.*'a'"),
        ("show 1f1b --ranks 2 --microbatches 4 --option name=1", "schedule's own, got 'name'"),
        ("show 1f1b --ranks 2 --microbatches 4 --option a=1 --option a=2", "once, got 'a' twice"),
        ("show 1f1 --ranks 2 --microbatches 4", "unknown schedule '1f1': did you mean '1f1b'"),
        ("show good.csv --ranks 2", "--ranks: expected the name of a schedule with it, got a file"),
        ("show good.csv --option a=1", "--option: expected the name of a schedule"),
        ("verify none.csv", "none.csv: No such file or directory"),
        ("verify broken.csv", 'broken.csv: row 2, column 2: bad action "what"'),
        ("verify bytes.csv", r"bytes.csv: row 1, column 2: bad action \"\\xff\\xfe\""),
        ("verify empty.csv", "empty.csv: a CSV schedule must have a row for each rank, got an emp"),
        ("verify plain.txt", "expected a file .* in .csv or .json, got 'plain.txt'"),
        ("verify broken.json", "broken.json: row 1, column 1: expected the key 'format'"),
        ("verify good.csv --from json", r"good.csv: row 1, column 1: expected an object at \"0F0"),
        ("verify bytes.csv --from json", "bytes.csv: row 1, column 1: expected an object at"),
        ("verify bytes.json", BYTES_JSON),
        ("verify bytes.txt --from json", BYTES_JSON),
        ("verify bytes.csv --from csv", r"bytes.csv: row 1, column 2: bad action \"\\xff\\xfe\""),
        (
            "verify good.csv --from zero-bubble",
            "good.csv: row 1, column 1: expected a type and a m",
        ),
        ("verify good.csv --from yaml", "--from: invalid choice: 'yaml'"),
        ("verify none --from csv", "none: No such file or directory"),
        ("verify good.csv --placement 0,1", "--placement: expected with --from zero-bubble alone"),
        ("show printed --from zero-bubble --placement 0,9", r"--placement: .*in \[0, 2\), got 9"),
        ("show printed --from zero-bubble --placement a", "--placement: expected integers of at l"),
        ("show 1f1b --from csv --ranks 2", "--ranks: expected the name of a schedule with it"),
        ("show 1f1b --ranks 2 --microbatches 4 --option forward_only=1", "own, got 'forward_only'"),
        ("verify good.csv --capacity -1", "--capacity: expected an integer from 0.*got '-1'"),
        ("verify good.csv --capacity 1 --rendezvous", "--rendezvous: not allowed with"),
        ("verify good.csv --memory 1,2,3", r"--memory must be one number or 2 .*, got 3"),
        ("verify good.csv --tied-stages 0,x", "--tied-stages: expected integers of .*, got '0,x'"),
        ("verify good.csv --tied-stages 0,5", r"--tied-stages: stage must be in \[0, 2\), got 5"),
        (
            "verify good.csv --tied-stages 0,0",
            "--tied-stages: stage 0 must be in one group, once, got it twice in group 0",
        ),
        (
            "verify good.csv --tied-stages 0,1 --tied-stages 1",
            "--tied-stages: stage 1 must be in one group, once, got it in groups 0 and 1",
        ),
        ("verify good.csv --weight-share 2", "--weight-share must be from 0 to 1, got 2"),
        ("verify good.csv --weight-share 0,1", "--weight-share: expected a number.*got '0,1'"),
        ("show good.csv --transfers", "--transfers: expected --svg or --png with it, got neither"),
        ("verify good.csv --svg a.png", "--svg: expected a file that ends in .svg, got 'a.png'"),
        ("simulate good.csv --forward nan", "--forward: expected a number of at least 0.*'nan'"),
        ("simulate good.csv --forward=", "--forward: expected a number of at least 0.*got ''"),
        ("simulate good.csv --input -1,2", "--input: expected a number of at least 0.*'-1,2'"),
        ("simulate good.csv --latency -inf", "--latency: expected a number.*0, got '-inf'"),
        ("simulate good.csv --latency 1,2", "--latency: expected a number of.*0, got '1,2'"),
        ("simulate good.csv --bytes 1,2,3", r"--bytes: expected 1 number or 2 \(--stages\), got 3"),
        ("simulate good.csv --latency 1e308", "costs: .*finite"),
        ("simulate good.csv --latency-of 0-1", "--latency-of: expected A-B=NUMBER.*got '0-1'"),
        ("simulate good.csv --bandwidth-of 0-1=-2", "--bandwidth-of: expected A-B.*'0-1=-2'"),
        (
            "simulate good.csv --latency-of 0-1=1 --latency-of 0-1=2",
            "--latency-of: expected each edge once, got 0-1 twice",
        ),
        (
            "simulate good.csv --bandwidth-of 1-0=1 --bandwidth-of 1-0=1",
            "--bandwidth-of: expected each edge once, got 1-0 twice",
        ),
        ("simulate good.csv --link 0-1,1", "--link: expected edges.*as A-B,C-D, got '0-1,1'"),
        ("simulate good.csv --link 0-2", r"costs: links: an edge must lead.*0 to 1, got \(0, 2\)"),
        ("simulate good.csv --link 0-1 --link 0-1", r"costs: links: .* got \(0, 1\) twice"),
        ("simulate good.csv --skip 0-2", "--skip: expected A-B=NUMBER.*got '0-2'"),
        ("simulate good.csv --skip 0-9=1", r"costs: skips: expected a stage.* got 0 and \[9\]"),
        ("simulate good.csv --weight-share 2", "costs: weight_share must be at most 1, got 2"),
        ("simulate good.csv --update 1,2,3", r"--update: expected 1 number or 2 .* got 3"),
        ("convert good.csv a.yaml", "expected a file .* in .csv or .json, got 'a.yaml'"),
        ("convert good.csv no/a.csv", "no/a.csv: No such file or directory"),
        ("convert good.csv - --json", "--json: expected a file for OUT with it, got -"),
        ("compare --ranks 2", "required: --microbatches"),
        ("compare 1f1 --ranks 2 --microbatches 4", "unknown schedule '1f1'"),
        ("compare none.csv --ranks 2 --microbatches 4", "none.csv: No such file"),
        ("compare --ranks 2 --microbatches 4 --weight 1,2", "--weight: expected 1.*--stages.*2"),
        ("compare --ranks 2 --microbatches 4 --memory -2", "--memory: expected a number.*'-2'"),
        ("search --ranks 2 --microbatches 4 --memory 0.5", "--memory must be at least 1 on rank 0"),
        ("search --ranks 2 --microbatches 4 --memory 1,2,3", r"--memory must be one number or 2"),
        (
            "search --ranks 2 --microbatches 4 --weight-share 2",
            "--weight-share must be from 0 to 1, got 2",
        ),
        ("search --ranks 2 --microbatches 4 --recompute 2", "unrecognized arguments: --recompute"),
        ("search --ranks 2 --microbatches 4 --unshard 2", "unrecognized arguments: --unshard"),
        ("search --ranks 2 --microbatches 4 --reload 2", "unrecognized arguments: --reload"),
        ("search --ranks 2 --microbatches 4 --stages 3", "--stages must be a positive multiple"),
        ("search --ranks 2 --microbatches 4 --placement w", "--placement: invalid choice: 'w'"),
        ("search --ranks 2 --microbatches 4 --out -", "--out: expected a file, got -"),
        ("draw good.csv", "invalid choice: 'draw'"),
        ("list --jso", "unrecognized arguments: --jso"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_ends_with_2(call, words, message):
    code, out, err = call(*words.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert re.match(rf"pipert[a-z ]*: error: .*{message}", err)


def test_what_is_too_large_for_the_memory_is_told(call, monkeypatch):
    def build(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("pipert.cli.source.Schedule.build", build)
    code, _, err = call("show", "1f1b", *SIZES)
    assert (code, "too large for this machine's memory" in err) == (2, True)


@pytest.mark.parametrize("words", [["--help"], ["schedule", "--help"], ["--version"]])
def test_help_and_version_end_with_0(words, capsys):
    assert main(words) == 0
    assert "pipert" in capsys.readouterr().out


def test_no_words_are_a_mistake(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- as a process -------------------------------------------------------------------------------

PIPERT = [sys.executable, "-m", "pipert", "schedule"]
LONG = [*PIPERT, "show", "gpipe", "--ranks", "8", "--microbatches", "20000", "--actions"]


def test_the_module_runs_as_a_command_with_its_exit_code():
    done = subprocess.run(
        [*PIPERT, "verify", "swapped.csv"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, NOT_OK, "")


def test_the_installed_command_is_the_same_function():
    found = re.search(
        r'^\[project\.scripts\]\npipert = "(.*):(.*)"$',
        (ROOT / "pyproject.toml").read_text(),
        re.MULTILINE,
    )
    assert found is not None
    assert callable(getattr(importlib.import_module(found[1]), found[2]))


@pytest.mark.parametrize("ending", ["the reader goes away", "Ctrl-C"])
def test_an_end_from_outside_is_quiet(ending):
    with subprocess.Popen(LONG, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout.readline().startswith("gpipe: 8 ranks")  # more than a pipe holds
            expected = signal.SIGPIPE
            if ending == "Ctrl-C":
                expected = signal.SIGINT
                run.send_signal(expected)
            else:
                run.stdout.close()
            assert run.stderr.read() == ""
            assert run.wait(30) == -expected
        finally:
            run.kill()


# --- docs/cli.md --------------------------------------------------------------------------------


def guide_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_guide_prints_what_the_commands_print(capsys):
    (swapped,) = guide_blocks("csv")
    Path("swapped.csv").write_text(swapped)
    for block in guide_blocks("console"):
        printed, code = "", None
        for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            words = shlex.split(line)
            if words == ["echo", "$?"]:
                print(code)
            else:
                assert words[0] == "pipert"
                code = main(words[1:])
            captured = capsys.readouterr()
            assert captured.err == ""
            printed += f"$ {line}\n{captured.out}"
        assert printed == block


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("list", []),
        ("show", ["good.csv", "--program"]),
        ("verify", ["good.csv"]),
        ("simulate", ["good.csv"]),
        ("convert", ["good.csv", "out.csv"]),
        ("compare", ["good.csv", "1f1b", "--ranks", "2", "--microbatches", "2"]),
        ("search", ["--ranks", "2", "--microbatches", "2", "--iterations", "9"]),
    ],
)
def test_the_guide_tells_every_key_of_the_json(ask, command, words):
    rows = dict(re.findall(r"^\| (.*?) \| (.*) \|$", GUIDE.partition("## JSON")[2], re.MULTILINE))
    told = rows[f"`{command}`"]
    _, answer = ask(command, *words)
    if "num_ranks" in answer:
        told += rows["all on one schedule"]
    keys = set(answer)
    for objects in (answer.get("schedules", []), answer.get("critical_path", [])):
        keys.update(*objects)
    assert {key for key in keys if f"`{key}`" not in told} == set()


def test_the_guide_names_every_command(capsys):
    main(["schedule", "--help"])
    commands = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) >= 6
    assert [each for each in commands if f"| `{each}` |" not in GUIDE] == []
