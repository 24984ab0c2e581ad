"""pipert: a native runtime for pipeline-parallel training in PyTorch."""

from typing import TYPE_CHECKING, Any

import torch  # noqa: F401 - _C needs torch's libraries

from pipert._torch_check import check_torch

check_torch()

from pipert._C import (  # noqa: E402
    Action,
    Bounds,
    Costs,
    CurrentMicrobatch,
    Gap,
    Lowering,
    MessageSpan,
    OverlapHalf,
    PartitionResult,
    Placement,
    Program,
    Proof,
    Schedule,
    SearchResult,
    Span,
    Timeline,
    Verdict,
    current_microbatch,
    lower,
    lower_bounds,
    prove,
    render_svg,
    schedule_options,
    schedules,
    search_partition,
)
from pipert.batches.batch import Microbatch  # noqa: E402
from pipert.batches.results import StepResult  # noqa: E402
from pipert.batches.specs import REPLICATE, CustomCut, Cut  # noqa: E402
from pipert.checkpoints.checkpoint import materialize  # noqa: E402
from pipert.errors import PipelineError, RemoteTraceback  # noqa: E402
from pipert.keyed_random import KeyedRandom  # noqa: E402
from pipert.one_line import pipeline  # noqa: E402
from pipert.periodic import periodic_schedule  # noqa: E402
from pipert.pipeline import Pipeline  # noqa: E402
from pipert.processes.group import init  # noqa: E402
from pipert.processes.transports import EdgeTransport  # noqa: E402
from pipert.reports.memory import RankMemory  # noqa: E402
from pipert.reports.report import RankReport, Report, UnsplitNode  # noqa: E402
from pipert.reports.trace import Message, RankPass, Trace, TraceEvent  # noqa: E402
from pipert.split import (  # noqa: E402
    LayerList,
    LayerSpec,
    TiedLayerSpec,
    annotate_split_points,
    pipe_split,
    split,
)
from pipert.stages import Stages  # noqa: E402

if TYPE_CHECKING:
    from torch.distributed.pipelining import SplitPoint

__version__ = "0.1.0"

__all__ = [
    "REPLICATE",
    "Action",
    "Bounds",
    "Costs",
    "CurrentMicrobatch",
    "CustomCut",
    "Cut",
    "EdgeTransport",
    "Gap",
    "KeyedRandom",
    "LayerList",
    "LayerSpec",
    "Lowering",
    "Message",
    "MessageSpan",
    "Microbatch",
    "OverlapHalf",
    "PartitionResult",
    "Pipeline",
    "PipelineError",
    "Placement",
    "Program",
    "Proof",
    "RankMemory",
    "RankPass",
    "RankReport",
    "RemoteTraceback",
    "Report",
    "Schedule",
    "SearchResult",
    "Span",
    "SplitPoint",
    "Stages",
    "StepResult",
    "TiedLayerSpec",
    "Timeline",
    "Trace",
    "TraceEvent",
    "UnsplitNode",
    "Verdict",
    "annotate_split_points",
    "current_microbatch",
    "init",
    "lower",
    "lower_bounds",
    "materialize",
    "periodic_schedule",
    "pipe_split",
    "pipeline",
    "prove",
    "render_svg",
    "schedule_options",
    "schedules",
    "search_partition",
    "split",
]


def __getattr__(name: str) -> Any:
    if name != "SplitPoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipert.split import SplitPoint

    return SplitPoint
