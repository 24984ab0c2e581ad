"""The example trains, resumes and moves to processes without changing a bit; it tells mistakes."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "train_gpt.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
TORCHRUN += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a free port
SMALL = ["--batch", "8", "--microbatches", "4", "--steps", "6", "--validate-every", "1"]
SMALL += ["--sample", "8"]
LINE = re.compile(r"step +(\d+)/\d+  loss (\S+) .* validation loss (\S+)")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A short text, so that a validation takes no time."""
    from pydoc_data.topics import topics

    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_bytes("\n\n".join(topics.values()).encode()[:40_000])
    return file


def run(
    text: pathlib.Path, *options: str, launcher: list[str] | None = None
) -> tuple[int, str, str]:
    """Runs the example, and returns its exit status, what it printed, and its errors."""
    command = [*(launcher or [sys.executable]), str(EXAMPLE), "--text", str(text), *SMALL, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output, errors


def train(text: pathlib.Path, *options: str, launcher: list[str] | None = None) -> str:
    """Runs the example to its end, and returns what it printed."""
    status, output, errors = run(text, *options, launcher=launcher)
    assert status == 0, errors[-4000:]
    return output


def losses(output: str) -> dict[int, tuple[str, str]]:
    """Returns training and validation loss by step, as printed: nine digits name each float32."""
    return {int(step): (loss, validation) for step, loss, validation in LINE.findall(output)}


@pytest.fixture(scope="module")
def uninterrupted(text: pathlib.Path) -> str:
    return train(text)


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
    uninterrupted: str, text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "gpt")]
    before = losses(train(text, *checkpoint, "--stop-at", "3"))
    after = train(text, *checkpoint, "--resume")
    assert before | losses(after) == losses(uninterrupted)
    assert list(losses(after)) == [4, 5, 6]
    assert _sample(after) == _sample(uninterrupted)
    status, _, errors = run(text, *checkpoint, "--resume")
    assert (status, errors) == (1, f"nothing to do: {tmp_path / 'gpt'} has seen 6 of 6 steps\n")
    status, _, errors = run(text, *checkpoint, "--resume", "--batch", "4")
    assert status == 1
    assert "is of a run with {'steps': 6, 'batch': 8," in errors


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
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", *options.split()])
    (tmp_path / "tiny.txt").write_text("tiny\n")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("train_gpt").parse_args(num_ranks=2)
    assert ended.value.code == 2
    assert f"train_gpt.py: error: {MISTAKES[options]}" in capsys.readouterr().err.replace(
        "[Errno 2] ", ""
    )


@pytest.mark.distributed
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b"])
def test_two_processes_equal_two_threads_bit_for_bit(
    uninterrupted: str, text: pathlib.Path, schedule: str
) -> None:
    processes = train(text, "--schedule", schedule, launcher=TORCHRUN)
    assert losses(processes) == losses(uninterrupted)
    assert _sample(processes) == _sample(uninterrupted)


@pytest.mark.distributed
@pytest.mark.parametrize("launchers", [(None, TORCHRUN), (TORCHRUN, None)], ids=["to", "from"])
def test_checkpoint_goes_from_threads_to_processes_and_back_bit_for_bit(
    uninterrupted: str,
    text: pathlib.Path,
    tmp_path: pathlib.Path,
    launchers: tuple[list[str] | None, list[str] | None],
) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "gpt")]
    before = losses(train(text, *checkpoint, "--stop-at", "3", launcher=launchers[0]))
    after = losses(train(text, *checkpoint, "--resume", launcher=launchers[1]))
    assert before | after == losses(uninterrupted)


def _sample(output: str) -> str:
    """Returns what the example wrote after its last step, up to the table."""
    *_, last = LINE.finditer(output)
    return output[last.end() : output.index("unigram entropy")]
