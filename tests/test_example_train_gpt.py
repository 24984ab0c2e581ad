"""The example trains, resumes and moves to processes without changing a bit; it tells mistakes."""

from __future__ import annotations

import pathlib
import re
import sys

import pytest
from example_script import imported, run, run_in_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = ["--batch", 8, "--microbatches", 4, "--steps", 6, "--validate-every", 1, "--sample", 8]
LINE = re.compile(r"step +(\d+)/\d+  loss (\S+) .* validation loss (\S+)")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The example and its options, with a short text, so that a validation takes no time."""
    from pydoc_data.topics import topics

    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_bytes("\n\n".join(topics.values()).encode()[:40_000])
    return ["train_gpt.py", "--text", file, *SMALL]


def losses(output: str) -> dict[int, tuple[str, str]]:
    """Returns training and validation loss by step, as printed: nine digits name each float32."""
    return {int(step): (loss, validation) for step, loss, validation in LINE.findall(output)}


@pytest.fixture(scope="module")
def uninterrupted(small: list[object]) -> str:
    return run(*small)


@pytest.fixture(scope="module")
def in_two_processes(
    small: list[object], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What it prints under torchrun. "resumes" goes on from a checkpoint of threads."""
    folder = tmp_path_factory.mktemp("gpt")
    run(*small, "--checkpoint", folder / "of-threads", "--stop-at", 3)
    runs = {
        "1f1b": [],
        "interleaved_1f1b": ["--schedule", "interleaved_1f1b"],
        "resumes": ["--checkpoint", folder / "of-threads", "--resume"],
        "stops": ["--checkpoint", folder / "of-processes", "--stop-at", 3],
    }
    (folder / "printed").mkdir()
    scripts = [[*small, *options] for options in runs.values()]
    outputs = run_in_processes(2, folder / "printed", *scripts)
    return dict(zip(runs, outputs, strict=True)) | {"folder": str(folder / "of-processes")}


def test_loss_falls_below_that_of_a_guess(uninterrupted: str) -> None:
    found = losses(uninterrupted)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    training, validation = (float(loss) for loss in found[6])
    assert training < float(found[1][0]) - 0.1
    assert validation < 5.545  # log(256)


def test_last_table_has_entropies_speed_and_bubble(uninterrupted: str) -> None:
    for words in ("unigram entropy", "bigram entropy", "bytes/s", "bubble"):
        assert words in uninterrupted


def test_resumed_run_equals_uninterrupted_bit_for_bit(
    uninterrupted: str, small: list[object], tmp_path: pathlib.Path
) -> None:
    checkpoint = ["--checkpoint", tmp_path / "gpt"]
    before = losses(run(*small, *checkpoint, "--stop-at", 3))
    after = run(*small, *checkpoint, "--resume")
    assert before | losses(after) == losses(uninterrupted)
    assert list(losses(after)) == [4, 5, 6]
    assert _sample(after) == _sample(uninterrupted)
    with pytest.raises(SystemExit, match=f"nothing to do: {tmp_path / 'gpt'} has seen 6 of 6"):
        run(*small, *checkpoint, "--resume")
    with pytest.raises(SystemExit, match=r"is of a run with {'steps': 6, 'batch': 8,"):
        run(*small, *checkpoint, "--resume", "--batch", 4)


MISTAKES = {
    "--text nowhere.txt": "No such file or directory: 'nowhere.txt'",
    "--text tiny.txt": "the text must have at least 21121 bytes, got 5",
    "--steps 0": "argument --steps: expected a positive integer, got 0",
    "--stop-at 0": "argument --stop-at: expected a positive integer, got 0",
    "--batch many": "argument --batch: invalid positive value: 'many'",
    "--microbatches 17": "--microbatches must be at most --batch, 16, got 17",
    "--microbatches 1 --schedule interleaved_1f1b": "num_microbatches must be at least 2",
    "--schedule 1f1bb": "unknown schedule '1f1bb': did you mean '1f1b'?",
    "--checkpoint tiny.txt": "--checkpoint must be a folder, got the file tiny.txt",
    "--resume": "--resume needs --checkpoint, the folder to go on from",
    "--resume --checkpoint gpt": "--resume: there is no checkpoint in gpt",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_mistakes_in_options_are_told_before_anything_runs(
    options: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", *options.split()])
    (tmp_path / "tiny.txt").write_text("tiny\n")
    with pytest.raises(SystemExit) as ended:
        imported("train_gpt").parse_args(num_ranks=2)
    assert ended.value.code == 2
    assert f"train_gpt.py: error: {MISTAKES[options]}" in capsys.readouterr().err.replace(
        "[Errno 2] ", ""
    )


@pytest.mark.distributed
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b"])
def test_two_processes_equal_two_threads_bit_for_bit(
    uninterrupted: str, in_two_processes: dict[str, str], schedule: str
) -> None:
    assert losses(in_two_processes[schedule]) == losses(uninterrupted)
    assert _sample(in_two_processes[schedule]) == _sample(uninterrupted)


@pytest.mark.distributed
def test_checkpoint_goes_from_threads_to_processes_bit_for_bit(
    uninterrupted: str, in_two_processes: dict[str, str]
) -> None:
    expected = losses(uninterrupted)
    assert losses(in_two_processes["resumes"]) == {step: expected[step] for step in (4, 5, 6)}


@pytest.mark.distributed
def test_checkpoint_goes_from_processes_to_threads_bit_for_bit(
    uninterrupted: str, small: list[object], in_two_processes: dict[str, str]
) -> None:
    before = losses(in_two_processes["stops"])
    after = losses(run(*small, "--checkpoint", in_two_processes["folder"], "--resume"))
    assert before | after == losses(uninterrupted)
    assert list(before) == [1, 2, 3]


def _sample(output: str) -> str:
    """Returns what the example wrote after its last step, up to the table."""
    *_, last = LINE.finditer(output)
    return output[last.end() : output.index("unigram entropy")]
