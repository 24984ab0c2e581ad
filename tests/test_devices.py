"""Devices that aren't there, stages that aren't on theirs, and settings that make a GPU slow."""

import pytest
import torch
from plain_loop import mlp
from torch import nn

import pipert
from pipert import _C
from pipert.devices import check_placed, device_of, warn_of_cuda

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def two_gpus(monkeypatch):
    """A torch that says that it has two."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


def test_a_device_that_the_machine_lacks_is_refused_with_what_it_has(two_gpus):
    assert device_of("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="got 'cuda:7', but this process sees 2: cuda:0 to cuda:1"):
        device_of("cuda:7")


def test_a_device_without_a_number_is_the_current_one(two_gpus):
    assert device_of("cuda") == torch.device("cuda", 1)


def test_a_torch_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"got 'cuda', but this torch \(.+\) was built without"):
        pipert.Pipeline(pipert.split(mlp(2), 2), num_microbatches=2, devices=["cuda", "cuda"])


def test_a_torch_that_finds_no_device_says_what_hides_it(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"sees no CUDA device.*CUDA_VISIBLE_DEVICES"):
        device_of("cuda:0")


class Stubborn(nn.Linear):
    """Stays where it is."""

    def to(self, *args, **kwargs):
        return self


def test_a_stage_that_stays_on_another_device_is_named():
    stages = [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), Stubborn(4, 4, device="meta"))]
    stages[1].to = lambda device: stages[1]
    with pytest.raises(
        ValueError, match=r"parameter '1\.1\.weight' of stage 1 is on meta, expected cpu: moving"
    ):
        pipert.Pipeline(stages, num_microbatches=2, loss_fn=nn.functional.mse_loss)


def test_a_weight_that_was_taken_to_another_stages_device_is_named():
    shared = nn.Linear(4, 4, device="meta")
    stages = [(0, shared, torch.device("cpu")), (1, shared, torch.device("meta"))]
    with pytest.raises(ValueError, match=r"'weight' of stage 0 is on meta.*stage 1 has the same"):
        check_placed(stages)


class Lanes:
    """What is asked of a program."""

    def __init__(self, count):
        self.lanes = [None] * count


def test_one_connection_for_several_lanes_is_warned_of(monkeypatch, recwarn):
    monkeypatch.setattr(_C, "has_cuda_lanes", lambda: True)
    gpu = torch.device("cuda", 0)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    warn_of_cuda({0: gpu}, [Lanes(1)])
    warn_of_cuda({0: torch.device("cpu"), 1: torch.device("cpu")}, [Lanes(3), Lanes(3)])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="all 6 lanes on cuda:0 go through one hardware queue"):
        warn_of_cuda({0: gpu, 1: gpu}, [Lanes(3), Lanes(3)])
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    warn_of_cuda({0: gpu, 1: gpu}, [Lanes(3), Lanes(3)])
    assert len(recwarn.list) == 0


def test_a_build_without_cuda_sources_is_warned_of(monkeypatch):
    monkeypatch.setattr(_C, "has_cuda_lanes", lambda: False)
    with pytest.warns(UserWarning, match="built without its CUDA sources.*PIPERT_CUDA=ON"):
        warn_of_cuda({0: torch.device("cuda", 0)}, [Lanes(2)])
