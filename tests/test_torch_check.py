import json
import sysconfig

import pytest

from pipert._torch_check import check_torch_cuda, check_torch_version, read_built_against


@pytest.mark.parametrize(
    ("built", "running"),
    [
        ("2.13.0+cpu", "2.13.0+cpu"),
        ("2.13.0+cpu", "2.13.1"),
        ("2.11.0+cu130", "2.11.0+cpu"),
        ("2.13.0", "2.13.0a0+git1234567"),
        ("2.13.0", "2.13"),
    ],
)
def test_the_same_minor_version_is_accepted(built, running):
    check_torch_version(built, running)


@pytest.mark.parametrize(
    ("built", "running", "mend"),
    [
        ("2.13.0+cpu", "2.12.1", "torch==2.13.*"),
        ("2.11.0+cu130", "2.13.0+cpu", "torch==2.11.*"),
        ("2.1.0", "2.11.0", "torch==2.1.*"),
        ("2.13.0", "3.13.0", "torch==2.13.*"),
    ],
)
def test_another_minor_version_is_refused_with_both_versions_and_the_command(built, running, mend):
    with pytest.raises(ImportError) as refusal:
        check_torch_version(built, running)
    message = str(refusal.value)
    assert built in message
    assert running in message
    assert mend in message
    assert "pip install --no-build-isolation" in message


@pytest.mark.parametrize(
    ("built", "running"), [(None, None), (None, "13.0"), ("13.0", "13.0"), ("13.0", "13.1")]
)
def test_a_fitting_cuda_is_accepted(built, running):
    check_torch_cuda(built, running)


@pytest.mark.parametrize(("running", "found"), [(None, "no CUDA"), ("12.8", "CUDA 12.8")])
def test_another_cuda_is_refused_with_the_command(running, found):
    with pytest.raises(ImportError, match=found) as refusal:
        check_torch_cuda("13.0", running)
    assert "pip install --no-build-isolation" in str(refusal.value)


def test_what_was_built_against_is_read_for_this_python(tmp_path):
    built = {"pipert": "0.1.0", "torch": "2.13.0+cpu", "cuda": None}
    tag = sysconfig.get_config_var("SOABI")
    (tmp_path / f"_C.{tag}.json").write_text(json.dumps(built))
    (tmp_path / "_C.cpython-27-pdp11.json").write_text("{}")
    assert read_built_against(tmp_path) == built


def test_a_missing_module_is_refused_with_the_command(tmp_path):
    with pytest.raises(ImportError, match="pip install --no-build-isolation -e"):
        read_built_against(tmp_path)
