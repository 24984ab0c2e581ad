"""What the documents say is so: their code runs, their links and names lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pipert

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for folder in (".", "docs", "benchmarks", "examples")
    for path in (ROOT / folder).glob("*.md")
)
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:pyi|py|cpp|cu|h|md|svg|toml|txt)(?!\w)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MADE_BY_USERS = {"train.py"}  # names that a document gives to a file of the reader's


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(name: str, language: str) -> list[str]:
    return [block for kind, block in BLOCK.findall(text_of(name)) if kind == language]


def prose(name: str) -> str:
    return BLOCK.sub("", text_of(name))


def files_in_repository() -> set[str]:
    skipped = {".git", ".venv", "build", "__pycache__"}
    files = set()
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in skipped]
        files.update((Path(folder) / name).relative_to(ROOT).as_posix() for name in names)
    return files


def run_python(code: str, folder: Path) -> str:
    """Runs it as a script, in this process: another would take seconds to start torch."""
    script = folder / "train.py"
    script.write_text(code)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(script), run_name="__main__")
    return printed.getvalue()


def test_there_are_documents():
    assert {"README.md", "docs/architecture.md", "docs/glossary.md"} <= set(NAMES)


@pytest.mark.parametrize("index", range(1, len(blocks("README.md", "python"))))
def test_readme_python_runs_as_printed(index, tmp_path):
    assert run_python(blocks("README.md", "python")[index], tmp_path)


def test_native_page_prints_what_it_says(tmp_path):
    (code,), (output,) = blocks("docs/native.md", "python"), blocks("docs/native.md", "text")
    assert run_python(code, tmp_path) == output


def test_split_page_prints_what_it_says(tmp_path):
    (code,), (output,) = blocks("docs/split.md", "python"), blocks("docs/split.md", "text")
    assert run_python(code, tmp_path) == output


def test_layers_page_runs_and_prints_what_it_says(tmp_path):
    code, (output,) = blocks("docs/layers.md", "python"), blocks("docs/layers.md", "text")
    assert output in run_python("\n".join(code), tmp_path)


def test_batches_page_prints_what_it_says(tmp_path):
    examples = blocks("docs/batches.md", "python")[1:]  # the first shows a call
    printed = "".join(blocks("docs/batches.md", "text"))
    assert run_python("".join(examples), tmp_path) == printed


def test_trace_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    names = {
        "pipert": pipert,
        "stages": pipert.split(model, 2),
        "loss_fn": nn.functional.mse_loss,
        "loader": [(torch.ones(8, 4), torch.zeros(8, 4))] * 5,
    }
    for block in blocks("docs/trace.md", "python"):
        exec(block, names)
    names["pipe"].close()
    assert {path.name for path in tmp_path.iterdir()} == {"trace.json", "trace.svg"}


def test_models_page_runs():
    pytest.importorskip("transformers", reason="transformers isn't installed")
    names: dict[str, object] = {}
    for block in blocks("docs/models.md", "python"):
        exec(block, names)
    assert names["result"].loss.isfinite()


def test_tied_page_prints_what_it_says(capsys):
    (code,), (output,) = blocks("docs/tied.md", "python"), blocks("docs/tied.md", "text")
    names = {
        "pipert": pipert,
        "torch": torch,
        "loss_fn": lambda logits, words: nn.functional.cross_entropy(
            logits.flatten(0, -2), words.flatten()
        ),
        "words": torch.arange(40).reshape(8, 5),
        "next_words": torch.arange(1, 41).reshape(8, 5),
    }
    exec(code, names)
    assert capsys.readouterr().out == output


@pytest.mark.distributed
@pytest.mark.timeout(240)
def test_readme_example_prints_the_same_loss_under_torchrun(tmp_path):
    example = blocks("README.md", "python")[0]
    printed = run_python(example, tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a free port
    result = subprocess.run(
        [*torchrun, str(tmp_path / "train.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == printed
    assert "loss" in printed


@pytest.mark.parametrize("name", NAMES)
def test_python_blocks_are_python(name):
    for block in blocks(name, "python"):
        ast.parse(block)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    missing = []
    for link in LINK.findall(prose(name)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (heading and heading not in headings(target)):
            missing.append(link)
    assert missing == []


def headings(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name):
    files = files_in_repository()
    base_names = {file.rpartition("/")[2] for file in files}
    missing = []
    for code in CODE.findall(prose(name)):
        for file in FILE.findall(code) if "<" not in code else []:
            known = files if "/" in file else base_names | MADE_BY_USERS
            if file not in known and not any(other.endswith(f"/{file}") for other in files):
                missing.append(file)
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_no_document_names_a_machine(name):
    found = re.findall(r"(?<![\w.])/(?:home|tmp|work|root|Users)/\S*", text_of(name))
    assert found == []


def glossary() -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in text_of("docs/glossary.md").splitlines()]
    return [[cell.strip() for cell in row] for row in rows if len(row) == 4][2:]


def test_every_word_of_the_glossary_names_something_that_exists():
    assert len(glossary()) > 20
    wrong = []
    for word, _, cpp, python in glossary():
        if cpp:
            name, file = CODE.findall(cpp)
            header = ROOT / file
            identifier = name.rpartition("::")[2]
            if not header.is_file() or not re.search(rf"\b{identifier}\b", header.read_text()):
                wrong.append(f"{word}: {cpp}")
        if python and not exists_in_python(CODE.findall(python)[0]):
            wrong.append(f"{word}: {python}")
    assert wrong == []


def exists_in_python(dotted: str) -> bool:
    owner, _, attribute = dotted.partition(".")
    thing = getattr(pipert, owner, None)
    if thing is None or not attribute or hasattr(thing, attribute):
        return thing is not None
    return inspect.isclass(thing) and f"self.{attribute} =" in inspect.getsource(thing)


def test_the_program_that_is_printed_is_the_one_that_is_made():
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=3)
    printed = blocks("docs/architecture.md", "text")
    assert str(pipert.lower(schedule)[0]).strip() in [block.strip() for block in printed]


def test_the_program_with_skip_edges_is_what_its_code_prints(capsys):
    (code,) = (b for b in blocks("docs/architecture.md", "python") if "StageGraph" in b)
    exec(code, {})
    printed = [block.strip() for block in blocks("docs/architecture.md", "text")]
    assert capsys.readouterr().out.strip() in printed


def make_pipeline(stages=None, **options):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    arguments = {"num_microbatches": 4, "loss_fn": nn.functional.mse_loss, **options}
    return pipert.Pipeline(stages or pipert.split(model, num_stages=2), **arguments)


def step(rows=8, target_rows=None, stages=None, **arguments):
    with make_pipeline(stages) as pipe:
        pipe.step(torch.ones(rows, 4), target=torch.ones(target_rows or rows, 4), **arguments)


def step_with_a_stage_that_changes_its_mind():
    layer = nn.Linear(4, 4)

    def stage(x):
        y = layer(x)
        return y[:1] if pipert.current_microbatch().is_recomputing else y

    with make_pipeline([stage, nn.Linear(4, 4)], recompute=[0]) as pipe:
        pipe.step(torch.ones(8, 4), target=torch.ones(8, 4))


def step_without_target():
    with make_pipeline() as pipe:
        pipe.step(torch.ones(8, 4))


MISTAKES = {
    "unknown schedule": lambda: make_pipeline(schedule="1f1bb"),
    "few microbatches": lambda: pipert.Schedule.build(
        "interleaved_1f1b", num_ranks=2, num_stages=4, num_microbatches=1
    ),
    "stage count": lambda: make_pipeline(num_ranks=3),
    "small batch": lambda: step(rows=3),
    "rows differ": lambda: step(target_rows=6),
    "no target": step_without_target,
    "unknown keyword": lambda: step(mask=torch.ones(8, 4)),
    "a module for stages": lambda: make_pipeline(nn.Sequential(nn.Linear(4, 4))),
    "gradients that don't fit": step_with_a_stage_that_changes_its_mind,
    "stages that don't fit": lambda: step(stages=[nn.Linear(4, 8), nn.Linear(16, 4)]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_errors_read_as_printed(mistake):
    with pytest.raises((ValueError, TypeError, pipert.PipelineError)) as raised:
        MISTAKES[mistake]()
    kind = type(raised.value)
    name = "pipert.PipelineError" if kind is pipert.PipelineError else kind.__name__
    printed = "\n".join(blocks("docs/errors.md", "text"))
    assert f"{name}: {raised.value}" in printed
