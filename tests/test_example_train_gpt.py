"""The example trains, resumes and moves to processes without changing a bit."""

from __future__ import annotations

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


def train(text: pathlib.Path, *options: str, launcher: list[str] | None = None) -> str:
    """Runs the example, and returns what it printed."""
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
    assert process.returncode == 0, errors[-4000:]
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


@pytest.mark.distributed
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b"])
def test_two_processes_equal_two_threads_bit_for_bit(
    uninterrupted: str, text: pathlib.Path, schedule: str
) -> None:
    processes = train(text, "--schedule", schedule, launcher=TORCHRUN)
    assert losses(processes) == losses(uninterrupted)
    assert _sample(processes) == _sample(uninterrupted)


@pytest.mark.distributed
def test_checkpoint_of_threads_goes_on_in_processes_bit_for_bit(
    uninterrupted: str, text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "gpt")]
    before = losses(train(text, *checkpoint, "--stop-at", "3"))
    after = losses(train(text, *checkpoint, "--resume", launcher=TORCHRUN))
    assert before | after == losses(uninterrupted)


def _sample(output: str) -> str:
    """Returns what the example wrote after its last step, up to the table."""
    *_, last = LINE.finditer(output)
    return output[last.end() : output.index("unigram entropy")]
