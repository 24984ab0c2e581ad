"""What an edge with compression does, by torch alone: rounds forwards and backwards."""

import torch
from kernel_pieces import FORMATS, through_fp8_blocks
from torch import nn


def rounded(tensor, compression):
    if compression == "fp8_block":
        return through_fp8_blocks(tensor)
    return tensor.to(FORMATS[compression]).float()


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(context, x, compression):
        context.compression = compression
        return rounded(x, compression)

    @staticmethod
    def backward(context, gradient):
        return rounded(gradient, context.compression), None


class RoundedEdge(nn.Module):
    """Stands between two stages of the reference."""

    def __init__(self, compression):
        super().__init__()
        self.compression = compression

    def forward(self, x):
        return _Round.apply(x, self.compression)


def with_edges(stages, compression):
    """The stages in a row, with an edge between any two."""
    row = [stages[0]]
    for stage in stages[1:]:
        row += [RoundedEdge(compression), stage]
    return nn.Sequential(*row)
