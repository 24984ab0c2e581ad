"""The backward of one stage, by hand: torch's own functions, which know no process group.

pipert's engine doesn't call them: it has its own, in C++ (docs/backward.md).
"""

from torch.distributed.pipelining._backward import (
    stage_backward,
    stage_backward_input,
    stage_backward_weight,
)

__all__ = ["stage_backward", "stage_backward_input", "stage_backward_weight"]
