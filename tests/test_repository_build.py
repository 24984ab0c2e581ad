"""What was built fits torch, its stub file, and the package that a user installs."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import pipert
from pipert import _C

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = Path(pipert.__file__).parent
SOABI = sysconfig.get_config_var("SOABI")
BUILT_AGAINST = f"_C.{SOABI}.json"


def internals_version(library: Path) -> set[bytes]:
    return set(re.findall(rb"__pybind11_internals_v(\d+)_", library.read_bytes()))


def test_pybind11_internals_are_those_of_torch():
    ours = internals_version(Path(_C.__file__))
    assert len(ours) == 1
    assert ours == internals_version(Path(torch.__file__).parent / "lib" / "libtorch_python.so")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_module_brings_no_c_plus_plus_library_of_its_own():
    def read(*options: str) -> str:
        return subprocess.check_output(["readelf", "-W", *options, _C.__file__], text=True)

    assert "Shared library: [libstdc++.so.6]" in read("-d")
    # Value, size, type, binding, visibility, section, name: what has a section is defined here.
    symbols = [line.split() for line in read("--dyn-syms").splitlines()]
    facets = [s for s in symbols if len(s) > 7 and s[7].startswith("_ZNSt6locale5facet")]
    assert [s[7] for s in facets if s[6] != "UND"] == []


def test_a_value_error_crosses_as_a_plain_value_error():
    with pytest.raises(ValueError, match="no_such_schedule") as error:
        pipert.Schedule.build("no_such_schedule", num_ranks=2, num_microbatches=2)
    assert type(error.value) is ValueError
    assert "Exception raised from" not in str(error.value)  # torch's C++ backtrace


def test_what_was_built_against_is_this_torch():
    built = json.loads((PACKAGE / BUILT_AGAINST).read_text())
    assert built["torch"] == torch.__version__
    assert built["pipert"] == importlib.metadata.version("pipert")


def declared_names(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    names: dict[str, ast.stmt] = {}
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            names[statement.name] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names[statement.target.id] = statement
        elif isinstance(statement, ast.Assign):
            names |= {t.id: statement for t in statement.targets if isinstance(t, ast.Name)}
    return names


def public(names) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_the_stub_file_names_what_the_module_has():
    stub = declared_names(ast.parse((PACKAGE / "_C.pyi").read_text()).body)
    assert public(stub) == public(dir(_C))
    assert [name for name in public(stub) if not hasattr(_C, name)] == []  # "_": types alone
    for name, declaration in stub.items():
        if not isinstance(declaration, ast.ClassDef) or name.startswith("_"):
            continue
        members = declared_names(declaration.body)
        found = getattr(_C, name)
        assert [member for member in members if not hasattr(found, member)] == [], name
        own = {
            key
            for base in found.__mro__
            if base.__module__ == found.__module__
            for key in vars(base)
        }
        inherited = {key for base in declaration.bases for key in stub_members(stub, base)}
        assert public(own) - public(members) - inherited == set(), name


def stub_members(stub: dict[str, ast.stmt], base: ast.expr) -> set[str]:
    """The members of a base class that the same stub file declares."""
    declaration = stub.get(base.id) if isinstance(base, ast.Name) else None
    if not isinstance(declaration, ast.ClassDef):
        return set()
    deeper = {name for upper in declaration.bases for name in stub_members(stub, upper)}
    return set(declared_names(declaration.body)) | deeper


def build(kind: str, folder: Path) -> Path:
    """Builds "wheel" or "sdist" as pip does, with the options of the last build."""
    if not (REPOSITORY / "setup.py").exists() or not all(map(shutil.which, ("cmake", "ninja"))):
        pytest.skip("needs the source folder, CMake and Ninja")
    cache = REPOSITORY / "build" / f"cmake-{SOABI}" / "CMakeCache.txt"
    environment = dict(os.environ)
    if cache.exists():
        options = re.findall(r"^(PIPERT_\w+|CMAKE_BUILD_TYPE):\w+=(.+)$", cache.read_text(), re.M)
        environment |= dict(options)
    hook = f"from setuptools import build_meta as b; print(b.build_{kind}({str(folder)!r}))"
    command = [sys.executable, "-c", hook]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (built,) = folder.iterdir()
    return built


def sources(pattern: str) -> set[str]:
    return {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob(pattern)}


def test_every_extra_is_installed_by_make_or_named_by_an_error():
    project = (REPOSITORY / "pyproject.toml").read_text()
    section = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.M))
    installed = re.findall(r"'\.\[([\w,]+)\]'", (REPOSITORY / "Makefile").read_text())
    made = set(",".join(installed).split(","))
    assert made <= extras
    sources = [*REPOSITORY.glob("csrc/**/*.cpp"), *REPOSITORY.glob("pipert/**/*.py")]
    texts = "".join(source.read_text() for source in sources)
    assert {extra for extra in extras - made if f"pipert[{extra}]" not in texts} == set()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    names = set(zipfile.ZipFile(build("wheel", tmp_path)).namelist())
    built = {f"pipert/{BUILT_AGAINST}", f"pipert/{Path(_C.__file__).name}"}
    expected = sources("pipert/**/*.py") | {"pipert/py.typed", "pipert/_C.pyi"} | built
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_the_sdist_holds_what_a_build_needs(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md", "Makefile"}
    needed |= {"pipert/py.typed", "pipert/_C.pyi"} | sources("cmake/*.cmake")
    needed |= {name for folder in ("csrc", "pipert") for name in sources(f"{folder}/**/*.h")}
    needed |= sources("csrc/**/*.cpp") | sources("pipert/**/*.py") | sources("tests/**/*.py")
    assert needed - names == set()
    assert [name for name in names if name.endswith(".so") or name.startswith("build/")] == []
