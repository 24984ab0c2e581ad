"""PyTorch's own schedules, built without a process group, for the exchange of CSV files."""

from torch.distributed.pipelining import schedules as torch_schedules
from torch.distributed.pipelining.stage import _PipelineStageBase


class FakeStage(_PipelineStageBase):
    """As much of a stage as a PyTorch schedule asks for when it is made."""

    def __init__(self, num_stages, num_ranks):
        self.submod = None
        self.num_stages = num_stages
        self.group_size = num_ranks
        self.group_rank = 0
        self.group = None
        self.stage_index = 0

    def _create_grad_recv_info(self, *args, **kwargs):
        return None

    def _prepare_forward_infra(self, *args, **kwargs):
        return None

    def _prepare_backward_infra(self, *args, **kwargs):
        return None


def build(name, num_ranks, num_chunks, num_microbatches):
    stages = [FakeStage(num_ranks * num_chunks, num_ranks) for _ in range(num_chunks)]
    return getattr(torch_schedules, name)(stages, num_microbatches)


def build_single(name, num_ranks, num_microbatches):
    """One of those that give each rank one stage; PyTorch writes no CSV of them."""
    return getattr(torch_schedules, name)(FakeStage(num_ranks, num_ranks), num_microbatches)


def texts(order):
    """A PyTorch order as text: for each rank its actions, idle steps left out."""
    return [[str(a) for a in order[rank] if a is not None] for rank in sorted(order)]
