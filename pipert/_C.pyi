"""Types of pipert's native core."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from torch import Generator, Tensor, device
from torch._C._distributed_c10d import Backend, Store
from typing_extensions import Required

# --- ir ---------------------------------------------------------------------------------------

_Kind = Literal[
    "F",
    "B",
    "I",
    "W",
    "SEND_F",
    "RECV_F",
    "SEND_B",
    "RECV_B",
    "UNSHARD",
    "RESHARD",
    "REDUCE_GRAD",
    "OVERLAP_F_B",
    "R",
    "OFFLOAD",
    "RELOAD",
    "UPDATE",
]

class Action:
    def __init__(
        self,
        kind: str,
        stage: int,
        microbatch: int | None = None,
        *,
        paired: Action | None = None,
        slice: int | None = None,  # noqa: A002
        version: int = 0,
    ) -> None: ...
    @staticmethod
    def parse(text: str) -> Action: ...
    @property
    def kind(self) -> _Kind: ...
    @property
    def stage(self) -> int: ...
    @property
    def microbatch(self) -> int | None: ...
    @property
    def paired(self) -> Action | None: ...
    @property
    def slice(self) -> int | None: ...
    @property
    def version(self) -> int: ...
    @property
    def is_compute(self) -> bool: ...
    def __eq__(self, other: object) -> bool: ...
    def __lt__(self, other: Action) -> bool: ...
    def __hash__(self) -> int: ...

class Placement:
    def __init__(self, num_ranks: int, ranks: Sequence[int], num_copies: int = 1) -> None: ...
    @staticmethod
    def loop(num_ranks: int, num_stages: int) -> Placement: ...
    @staticmethod
    def v_shaped(num_ranks: int, num_stages: int) -> Placement: ...
    @staticmethod
    def bidirectional(num_ranks: int) -> Placement: ...
    @property
    def num_ranks(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def num_copies(self) -> int: ...
    @property
    def stages_per_copy(self) -> int: ...
    @property
    def ranks(self) -> list[int]: ...
    def rank_of(self, stage: int) -> int: ...
    def stages_of(self, rank: int) -> list[int]: ...
    def is_first(self, stage: int) -> bool: ...
    def is_last(self, stage: int) -> bool: ...
    def __eq__(self, other: object) -> bool: ...

class StageGraph:
    def __init__(
        self,
        *,
        activations: Sequence[tuple[int, int]] = (),
        gradients: Sequence[tuple[int, int]] = (),
    ) -> None: ...
    @property
    def activations(self) -> list[tuple[int, int]]: ...
    @property
    def gradients(self) -> list[tuple[int, int]]: ...
    @property
    def is_chain(self) -> bool: ...
    def __eq__(self, other: object) -> bool: ...

_Objective = Literal["makespan", "span"]
_PlacementChoice = Literal["loop", "v"] | Placement

class Schedule:
    def __init__(
        self,
        actions: Sequence[Sequence[Action | str]],
        *,
        placement: Placement | None = None,
        num_microbatches: int | None = None,
        num_slices: int | None = None,
        name: str = "custom",
    ) -> None: ...
    @staticmethod
    def build(
        name: str,
        *,
        num_ranks: int,
        num_microbatches: int,
        num_stages: int | None = None,
        forward_only: bool = False,
        **options: int | None,
    ) -> Schedule: ...
    @staticmethod
    def search(
        costs: Costs,
        num_ranks: int,
        num_microbatches: int,
        memory_limit: float | Sequence[float] | None = None,
        *,
        activation_size: float | Sequence[float] = 1.0,
        objective: _Objective = "makespan",
        placements: _PlacementChoice | Sequence[_PlacementChoice] | None = None,
        num_stages: int | None = None,
        seeds: Sequence[Schedule] = ...,
        time_limit: float | None = None,
        iterations: int | None = None,
        seed: int = 0,
        num_threads: int | None = None,
    ) -> SearchResult: ...
    @staticmethod
    def parse_csv(text: str | bytes, name: str = "csv") -> Schedule: ...
    @staticmethod
    def from_csv(path: str | os.PathLike[str], name: str | None = None) -> Schedule: ...
    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str: ...
    @staticmethod
    def parse_json(text: str | bytes) -> Schedule: ...
    @staticmethod
    def from_json(path: str | os.PathLike[str]) -> Schedule: ...
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str: ...
    @staticmethod
    def from_zero_bubble(
        ranks: Sequence[Sequence[tuple[str, int, int] | tuple[str, int, int, int]]],
        *,
        placement: Placement | None = None,
        name: str = "zero-bubble",
    ) -> Schedule: ...
    @staticmethod
    def parse_zero_bubble(
        text: str | bytes, *, placement: Placement | None = None, name: str = "zero-bubble"
    ) -> Schedule: ...
    @property
    def name(self) -> str: ...
    @property
    def num_ranks(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def num_microbatches(self) -> int: ...
    @property
    def num_slices(self) -> int: ...
    @property
    def placement(self) -> Placement: ...
    @property
    def actions(self) -> list[list[Action]]: ...
    @property
    def is_asynchronous(self) -> bool: ...
    def forward_only(self) -> Schedule: ...
    def with_offload(self, *, stages: Sequence[int] | None = None, ahead: int = 1) -> Schedule: ...
    def verify(
        self,
        *,
        capacity: int | None = None,
        rendezvous: bool = False,
        forward_only: bool = False,
        memory_limit: float | Sequence[float] | None = None,
        activation_size: float | Sequence[float] = 1.0,
        weight_share: float = 1.0,
        tied_stages: Sequence[Sequence[int]] = ...,
        joint_pairs: bool = False,
    ) -> Verdict: ...
    def peak_weight_versions(self) -> list[int]: ...
    def simulate(self, costs: Costs = ..., *, messages: bool = True) -> Timeline: ...
    def render(
        self,
        path: str | os.PathLike[str] | None = None,
        costs: Costs | None = None,
        *,
        width: int = 100,
        title: str | None = None,
        transfers: bool = False,
    ) -> str: ...
    def __eq__(self, other: object) -> bool: ...

# --- analysis ---------------------------------------------------------------------------------

_Defect = Literal[
    "malformed",
    "misplaced",
    "missing",
    "doubled",
    "unordered",
    "version",
    "collective",
    "memory",
    "deadlock",
]

class _InvolvedPlace(TypedDict):
    rank: int
    position: int
    action: Action
    role: Literal["culprit", "absent", "related"]
    note: str

class _PlaceWait(TypedDict):
    source: int
    target: int
    reason: Literal["input", "message", "room", "receiver", "collective"]

class _Counterexample(TypedDict):
    places: list[_InvolvedPlace]
    waits: list[_PlaceWait]

class Verdict:
    @property
    def ok(self) -> bool: ...
    @property
    def defect(self) -> _Defect | None: ...
    @property
    def message(self) -> str: ...
    @property
    def counterexample(self) -> _Counterexample | None: ...
    def render(self, path: str | os.PathLike[str] | None = None) -> str: ...
    def __bool__(self) -> bool: ...

_OfStages = float | Sequence[float]
_OfEdges = float | Mapping[tuple[int, int] | None, float]

class Costs:
    def __init__(
        self,
        *,
        forward: _OfStages = 1.0,
        input: _OfStages = 1.0,  # noqa: A002
        weight: _OfStages = 1.0,
        recompute: _OfStages | None = None,
        update: _OfStages = 0.0,
        reduce: _OfStages = 0.0,
        unshard: _OfStages = 0.0,
        reshard: _OfStages = 0.0,
        offload: _OfStages = 0.0,
        reload: _OfStages = 0.0,
        latency: _OfEdges = 0.0,
        bandwidth: _OfEdges = 0.0,
        bytes: _OfStages = 0.0,  # noqa: A002
        gradient_bytes: _OfStages | None = None,
        links: Sequence[Sequence[tuple[int, int]]] = (),
        blocking: bool = False,
        activation_bytes: _OfStages | None = None,
        weight_share: _OfStages = 1.0,
    ) -> None: ...
    @property
    def forward(self) -> list[float]: ...
    @property
    def input(self) -> list[float]: ...
    @property
    def weight(self) -> list[float]: ...
    @property
    def recompute(self) -> list[float] | None: ...
    @property
    def update(self) -> list[float]: ...
    @property
    def reduce(self) -> list[float]: ...
    @property
    def unshard(self) -> list[float]: ...
    @property
    def reshard(self) -> list[float]: ...
    @property
    def offload(self) -> list[float]: ...
    @property
    def reload(self) -> list[float]: ...
    @property
    def latency(self) -> float | dict[tuple[int, int] | None, float]: ...
    @property
    def bandwidth(self) -> float | dict[tuple[int, int] | None, float]: ...
    @property
    def bytes(self) -> list[float]: ...
    @property
    def gradient_bytes(self) -> list[float] | None: ...
    @property
    def links(self) -> list[list[tuple[int, int]]]: ...
    @property
    def blocking(self) -> bool: ...
    @property
    def activation_bytes(self) -> list[float] | None: ...
    @property
    def weight_share(self) -> list[float]: ...

class Span:
    @property
    def rank(self) -> int: ...
    @property
    def action(self) -> Action: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    def __eq__(self, other: object) -> bool: ...

class MessageSpan:
    @property
    def sender(self) -> Action: ...
    @property
    def reader(self) -> Action: ...
    @property
    def source(self) -> int: ...
    @property
    def destination(self) -> int: ...
    @property
    def sent(self) -> float: ...
    @property
    def begun(self) -> float: ...
    @property
    def arrived(self) -> float: ...

class Gap:
    @property
    def rank(self) -> int: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def kind(
        self,
    ) -> Literal["producer", "transfer", "link", "reader", "sending", "done", "unknown"]: ...
    @property
    def reason(self) -> str: ...
    @property
    def waits_for(self) -> Action | None: ...
    @property
    def other(self) -> int | None: ...

class Timeline:
    @staticmethod
    def from_spans(
        ranks: Sequence[Sequence[tuple[Action, float, float]]],
        *,
        messages: Sequence[tuple[tuple[int, int], tuple[int, int]]] | None = None,
    ) -> Timeline: ...
    @property
    def ranks(self) -> list[list[Span]]: ...
    @property
    def makespan(self) -> float: ...
    @property
    def spans(self) -> list[float]: ...
    @property
    def busy(self) -> list[float]: ...
    @property
    def bubble(self) -> list[float]: ...
    @property
    def span_bubble(self) -> list[float]: ...
    @property
    def peak_memory(self) -> list[int]: ...
    @property
    def peak_bytes(self) -> list[float] | None: ...
    @property
    def critical_path(self) -> list[Span]: ...
    @property
    def messages(self) -> list[MessageSpan]: ...
    @property
    def gaps(self) -> list[list[Gap]]: ...
    def render(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        width: int = 100,
        title: str = "",
        transfers: bool = False,
    ) -> str: ...

def render_svg(panels: Sequence[tuple[str, Timeline]], *, transfers: bool = False) -> str: ...

# --- schedule ---------------------------------------------------------------------------------

def schedules() -> list[str]: ...
def model_copies(name: str) -> int: ...

# --- search -----------------------------------------------------------------------------------

class Bounds:
    @property
    def span(self) -> float: ...
    @property
    def makespan(self) -> float: ...
    @property
    def span_reason(self) -> Literal["work", "fill and drain", "path", "in flight"]: ...
    @property
    def makespan_reason(self) -> Literal["work", "fill and drain", "path", "in flight"]: ...

def lower_bounds(
    placement: Placement,
    num_microbatches: int,
    costs: Costs,
    *,
    memory_limit: float | Sequence[float] | None = None,
    activation_size: float | Sequence[float] = 1.0,
) -> Bounds: ...
def schedule_options(
    name: str,
    costs: Costs,
    *,
    memory_limit: float | Sequence[float] | None = None,
    activation_size: float | Sequence[float] = 1.0,
) -> dict[str, int]: ...

class SearchResult:
    @property
    def schedule(self) -> Schedule: ...
    @property
    def timeline(self) -> Timeline: ...
    @property
    def value(self) -> float: ...
    @property
    def source(self) -> str: ...
    @property
    def options(self) -> dict[str, int]: ...
    @property
    def bounds(self) -> Bounds: ...
    @property
    def bound(self) -> float: ...
    @property
    def gap(self) -> float: ...
    @property
    def seeds(self) -> list[tuple[str, float]]: ...
    @property
    def iterations(self) -> int: ...
    @property
    def seconds(self) -> float: ...

class PartitionResult:
    @property
    def balance(self) -> list[int]: ...
    @property
    def costs(self) -> Costs: ...
    @property
    def search(self) -> SearchResult: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def value(self) -> float: ...
    @property
    def bound(self) -> float: ...
    @property
    def even_balance(self) -> list[int]: ...
    @property
    def even_value(self) -> float: ...

def search_partition(
    layers: Costs,
    num_ranks: int,
    num_microbatches: int,
    memory_limit: float | Sequence[float] | None = None,
    *,
    activation_size: float | Sequence[float] = 1.0,
    objective: _Objective = "makespan",
    placements: _PlacementChoice | Sequence[_PlacementChoice] | None = None,
    num_stages: int | None = None,
    num_layers: int | None = None,
    time_limit: float | None = None,
    iterations: int | None = None,
    seed: int = 0,
) -> PartitionResult: ...

class Measure:
    def __init__(
        self, once: Sequence[float], each: Sequence[float] = ..., times: Sequence[float] = ...
    ) -> None: ...

class Balance:
    @property
    def cuts(self) -> list[int]: ...
    @property
    def longest(self) -> float: ...
    @property
    def bound(self) -> float: ...
    @property
    def gap(self) -> float: ...
    @property
    def work(self) -> list[float]: ...
    @property
    def held(self) -> list[float]: ...

def balanced_cuts(
    work: Measure | Sequence[float],
    placement: Placement,
    *,
    held: Measure | Sequence[float] | None = None,
    limit: float | Sequence[float] | None = None,
    schedule: Schedule | None = None,
    costs: Costs | None = None,
) -> Balance: ...

# --- plan -------------------------------------------------------------------------------------

class _Slot(TypedDict):
    kind: Literal["receive", "send", "local"]
    source: int
    destination: int
    index: int

class _Lane(TypedDict):
    kind: Literal["compute", "send", "receive", "offload", "reload"]
    source: int
    destination: int

# A transfer has `message`, `sequence` and `slot`, a run and a move `action`, a run also `reads`,
# `keeps` (as long as `reads`) and `writes`.
class _Instruction(TypedDict, total=False):
    kind: Required[Literal["recv", "run", "send", "release", "move"]]
    lane: Required[int]
    waits: Required[list[int]]
    mark: Required[int | None]
    text: Required[str]
    message: tuple[str, int, int]
    sequence: int
    slot: int
    action: Action
    reads: list[int]
    keeps: list[int | None]
    writes: list[int]

class Program:
    @property
    def rank(self) -> int: ...
    @property
    def num_ranks(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def num_copies(self) -> int: ...
    @property
    def num_microbatches(self) -> int: ...
    @property
    def num_marks(self) -> int: ...
    @property
    def stage_graph(self) -> StageGraph: ...
    @property
    def peak_activations(self) -> int: ...
    @property
    def instructions(self) -> list[_Instruction]: ...
    @property
    def joint_pairs(self) -> list[int]: ...
    @property
    def slots(self) -> list[_Slot]: ...
    @property
    def lanes(self) -> list[_Lane]: ...
    def __len__(self) -> int: ...

class Lowering:
    def __init__(
        self,
        schedule: Schedule,
        *,
        receive_slots: int = 2,
        send_slots: int | None = None,
        joint_pairs: bool = False,
        stage_graph: StageGraph | None = None,
    ) -> None: ...
    def __getitem__(self, rank: int) -> Program: ...
    def __len__(self) -> int: ...

def lower(
    schedule: Schedule,
    *,
    receive_slots: int = 2,
    send_slots: int | None = None,
    joint_pairs: bool = False,
    stage_graph: StageGraph | None = None,
) -> list[Program]: ...

class _InstructionPlace(TypedDict):
    rank: int
    instruction: int
    text: str

class _Unneeded(TypedDict):
    rank: int
    instruction: int
    mark: int
    kind: Literal["wait", "mark"]

class Proof:
    @property
    def ok(self) -> bool: ...
    @property
    def flaw(self) -> str | None: ...
    @property
    def message(self) -> str: ...
    @property
    def places(self) -> list[_InstructionPlace]: ...
    @property
    def unneeded(self) -> list[_Unneeded]: ...
    @property
    def is_whole(self) -> bool: ...
    @property
    def num_assumed(self) -> int: ...
    def __bool__(self) -> bool: ...

def prove(programs: Sequence[Program]) -> Proof: ...
def edit_program(
    program: Program,
    instruction: int,
    *,
    waits: Sequence[int],
    mark: int | None,
    slots: Sequence[int],
) -> Program: ...

# --- random -----------------------------------------------------------------------------------

class LayerHook:
    def __init__(self, owner: int, layers: Sequence[int]) -> None: ...
    @property
    def owner(self) -> int: ...
    @property
    def layers(self) -> list[int]: ...
    def __call__(self, module: Any, *args: Any) -> None: ...

class ContextHook:
    def __init__(self, keywords: Sequence[str]) -> None: ...
    def __call__(
        self, module: Any, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None: ...

class KeyedScope:
    def __init__(
        self, *, seed: int, owner: int, device: str, training: bool, step: int, microbatch: int
    ) -> None: ...
    def enter(self) -> None: ...
    def exit(self) -> None: ...

class CurrentMicrobatch:
    @property
    def index(self) -> int: ...
    @property
    def num_microbatches(self) -> int: ...
    @property
    def stage(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def is_first(self) -> bool: ...
    @property
    def is_last(self) -> bool: ...
    @property
    def is_recomputing(self) -> bool: ...
    @property
    def training(self) -> bool: ...

def has_cuda_lanes() -> bool: ...
def has_profiler_ranges() -> bool: ...
def current_microbatch() -> CurrentMicrobatch | None: ...
def num_microbatch_questions() -> int: ...
def enter_loss() -> None: ...
def thread_generator() -> Generator | None: ...

# --- transport --------------------------------------------------------------------------------

class ExternalChannels: ...

class ShmSegment:
    @staticmethod
    def make_channel() -> ShmSegment: ...
    @staticmethod
    def open_channel(name: str) -> ShmSegment: ...
    @staticmethod
    def make_meeting(num_ranks: int, max_values: int) -> ShmSegment: ...
    @staticmethod
    def open_meeting(name: str) -> ShmSegment: ...
    @property
    def name(self) -> str: ...
    def remove_name(self) -> None: ...

class CudaIpcEdge:
    @staticmethod
    def make_channel(device: str) -> CudaIpcEdge: ...
    @staticmethod
    def open_channel(name: str, device: str) -> CudaIpcEdge: ...
    def map_slots(self) -> None: ...
    @property
    def name(self) -> str: ...
    def remove_name(self) -> None: ...

def has_cuda_ipc() -> bool: ...
def this_process() -> tuple[int, int, int]: ...
def is_running(process: tuple[int, int, int]) -> bool: ...

_Carrier: TypeAlias = ShmSegment | CudaIpcEdge | tuple[Backend, Backend | None]

def connect_processes(
    *,
    rank: int,
    num_ranks: int,
    device: str,
    edges: Sequence[tuple[int, int, _Carrier]],
    copies: Sequence[tuple[int, _Carrier, _Carrier]],
    ties: Sequence[tuple[int, _Carrier, _Carrier]],
    everybody: ShmSegment | Backend,
    board_store: Store,
    max_values: int,
    spin_us: int,
) -> ExternalChannels: ...

# --- runtime ----------------------------------------------------------------------------------

class PushProbe:
    @staticmethod
    def make(num_streams: int) -> PushProbe: ...
    @staticmethod
    def open(name: str) -> PushProbe: ...
    @property
    def name(self) -> str: ...
    def prepare(self, num_bytes: int) -> None: ...
    def answer_pushes(self, count: int, copies_out: bool) -> None: ...
    def answer_hops(self, count: int, num_bytes: int) -> None: ...
    def finish(self) -> None: ...
    def time_pushes(self, count: int) -> tuple[float, float]: ...
    def time_bare_pushes(self, count: int) -> tuple[float, float]: ...
    def time_copies(self, count: int, num_destinations: int) -> tuple[float, float]: ...
    def time_hops(self, count: int, num_bytes: int) -> tuple[float, float]: ...

def time_echoes(
    channels: ExternalChannels,
    *,
    rank: int,
    num_bytes: int,
    num_messages: int,
    epoch: int,
    device: str = "cpu",
) -> list[float]: ...
def time_calls(
    channels: ExternalChannels,
    *,
    rank: int,
    num_bytes: int,
    num_messages: int,
    epoch: int,
    device: str = "cpu",
) -> list[float]: ...
def time_stream(
    channels: ExternalChannels,
    *,
    rank: int,
    num_bytes: int,
    num_messages: int,
    epoch: int,
    reads: bool,
    device: str = "cpu",
) -> float: ...
def time_copies(*, num_bytes: int, count: int, num_destinations: int) -> list[float]: ...

class Rehearsal:
    @property
    def ending(self) -> Literal["completed", "stalled", "failed", "refused"]: ...
    @property
    def message(self) -> str: ...
    @property
    def actions(self) -> list[list[Action]]: ...
    @property
    def pass_ns(self) -> list[int]: ...
    @property
    def stalled_at(self) -> list[int | None]: ...

def lower_blindly(schedule: Schedule, *, joint_pairs: bool = False) -> list[Program]: ...
def rehearse(
    programs: Sequence[Program],
    placement: Placement,
    *,
    training: bool = True,
    capacity: int | None = None,
    limit_ms: int = 1000,
    num_passes: int = 1,
    spin_us: int = 0,
) -> Rehearsal: ...
def rehearse_rank(
    program: Program,
    placement: Placement,
    channels: ExternalChannels,
    *,
    training: bool = True,
    limit_ms: int = 1000,
    num_passes: int = 1,
) -> Rehearsal: ...

class OverlapHalf:
    @property
    def action(self) -> Action: ...
    @property
    def stage(self) -> int: ...
    @property
    def microbatch(self) -> int: ...
    @property
    def module(self) -> Any: ...
    def __call__(self) -> None: ...

# Stage in its copy, rank of the other copy, is the first copy, this process's stage if its losses
# are to be told, parameters, buffers.
_TiedWeight = tuple[str, int, bool, Sequence[int], Tensor, Tensor | None]
_SharedStage = tuple[int, int, bool, int | None, Sequence[Tensor], Sequence[Tensor]]

class NativeGraph:
    def __init__(
        self,
        *,
        num_inputs: int,
        num_parameters: int,
        num_registers: int,
        instructions: list[tuple[Any, ...]],
        outputs: list[tuple[str, Any]],
    ) -> None: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_instructions(self) -> int: ...
    def set_parameter(self, index: int, tensor: Tensor) -> None: ...
    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]: ...

class PassConditions:
    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        attributes: Sequence[dict[str, Any]],
        others: Sequence[Tensor],
        device: device,
    ) -> None: ...
    def state(self) -> int | None: ...
    @property
    def leaves(self) -> list[Tensor]: ...
    def gradients(self) -> list[Tensor | None]: ...
    def set_gradients(self, gradients: Sequence[Tensor | None]) -> None: ...

class TensorSlot:
    def __init__(self, like: Sequence[Tensor]) -> None: ...
    @property
    def tensors(self) -> list[Tensor]: ...
    def fill(self, tensors: Sequence[Tensor]) -> None: ...
    def copies(self) -> list[Tensor]: ...

class LastStream:
    def __init__(self) -> None: ...

class Replay:
    def __init__(
        self,
        *,
        conditions: PassConditions,
        inputs: TensorSlot,
        results: TensorSlot,
        gradients: Sequence[Tensor | None],
        prepare: Callable[[], None],
        launch: Callable[[], None],
        last: LastStream,
    ) -> None: ...
    def run(self, batch: tuple[Any, ...]) -> list[Tensor] | None: ...

class DeviceGraph:
    def begin(self) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...
    def launch(self) -> None: ...

class GraphPool:
    def __init__(self, device: str) -> None: ...
    def make(self) -> DeviceGraph: ...

class PassRecordings:
    batch: list[Tensor]
    def __init__(self, num_warmups: int) -> None: ...
    def is_warm(self) -> bool: ...
    def drop(self, reason: str, is_final: bool) -> None: ...
    def drop_oldest(self) -> bool: ...
    @property
    def num_recordings(self) -> int: ...

class ActionRecorder:
    def __init__(self, device: str, make_graph: Callable[[], Any] | None = ...) -> None: ...
    def begin(
        self,
        *,
        recordings: PassRecordings,
        leaves: Sequence[Tensor],
        batch: Sequence[Tensor],
        reads_copies: bool,
    ) -> None: ...
    def end(self, completed: bool) -> tuple[str, str | None]: ...

class Routes:
    def __init__(
        self,
        *,
        values: Sequence[tuple[int, Sequence[int], bool]],
        stages: Sequence[tuple[Sequence[int], Sequence[int]]],
        names: Sequence[str] = ...,
    ) -> None: ...
    def stage_graph(self) -> StageGraph: ...

class Runtime:
    def __init__(
        self,
        *,
        stages: Sequence[
            tuple[
                int,
                Callable[..., Any],
                bool,
                bool,
                bool,
                Sequence[str] | None,
                bool,
                Sequence[str],
            ]
        ],
        ranks: Sequence[tuple[Program, Program, str]],
        loss_fn: Callable[..., Any] | None,
        overlap_fn: Callable[[OverlapHalf, OverlapHalf], Any] | None,
        external: ExternalChannels | None,
        timeout_s: float,
        intra_op_threads: int,
        spin_us: int,
        share_losses: bool,
        rng_seed: int | None,
        owner: int,
        first_layers: Mapping[int, int],
        recomputed: Mapping[int, Sequence[bool]],
        measure_memory: bool = ...,
        network: Costs | None = ...,
        traced_passes: int = ...,
        device_times: bool = ...,
        profiler_ranges: bool = ...,
        advise: Callable[..., str] | None = ...,
        compression: str = ...,
        recorder: ActionRecorder | None = ...,
        routes: tuple[Routes, Placement] | None = ...,
        batch_specs: tuple[Any, Any, Any] | None = ...,
    ) -> None: ...
    def step(
        self,
        *,
        args: Any,
        kwargs: Any,
        target: Any,
        loss_kwargs: dict[str, Any] | None,
        is_cut: bool,
        training: bool,
        compute_loss: bool,
        keep_outputs: bool,
        step: int,
        begun_ns: int,
        main_gradients: Sequence[tuple[Tensor, Tensor, bool]] = ...,
        shared: Sequence[_SharedStage] = ...,
        tied: Sequence[_TiedWeight] = ...,
        loss_weights: Sequence[float] = ...,
        weigh: Callable[[list[Any]], Sequence[float]] | None = ...,
    ) -> None: ...
    def share_weights(
        self, *, shared: Sequence[_SharedStage], tied: Sequence[_TiedWeight]
    ) -> None: ...
    def share_gradients(self, *, tied: Sequence[_TiedWeight]) -> None: ...
    def losses(self) -> Tensor | None: ...
    def loss_weights(self) -> list[float]: ...
    def kept(self) -> tuple[dict[int, Any], dict[str, Tensor]] | tuple[None, None]: ...
    def withdraw(self, text: str) -> None: ...
    def running(self) -> bool: ...
    def usable(self) -> bool: ...
    def traces(
        self, ago: int
    ) -> list[tuple[int, bool, int, int, int, list[tuple[int, int, int, int]]]]: ...
    def device_timed(self) -> list[int]: ...
    def num_traces(self) -> int: ...
    def end_trace(self) -> None: ...
    def memory(self) -> list[tuple[int, int, int | None, list[int]]]: ...
    def channels(self) -> dict[tuple[int, int], str]: ...
    def num_in_flight(self) -> int: ...
    def watch_leaves(self, leaves: Sequence[Tensor] | None) -> bool: ...
    def unsplit_nodes(self) -> dict[int, list[tuple[str, str]]]: ...
    def peak_activations(self) -> dict[int, int]: ...
    def stage_kinds(self) -> dict[int, str]: ...
    def loss_kind(self) -> str | None: ...
    def close(self) -> None: ...

# --- kernels ----------------------------------------------------------------------------------

_Format = Literal["as_is", "float32", "bfloat16", "float16", "fp8_block"]

class kernels:  # noqa: N801
    @staticmethod
    def packed_bytes(tensors: Sequence[Tensor], format: _Format) -> int: ...  # noqa: A002
    @staticmethod
    def pack(tensors: Sequence[Tensor], slot: Tensor, format: _Format) -> int: ...  # noqa: A002
    @staticmethod
    def unpack(slot: Tensor, tensors: Sequence[Tensor], format: _Format) -> int: ...  # noqa: A002
    @staticmethod
    def accumulate(gradients: Sequence[Tensor], mains: Sequence[Tensor]) -> None: ...
    @staticmethod
    def check_finite(tensors: Sequence[Tensor], flag: Tensor, norm: Tensor) -> None: ...
    @staticmethod
    def write_flag(flag: Tensor, value: int) -> None: ...
    @staticmethod
    def wait_flag(
        flag: Tensor,
        value: int,
        max_polls: int,
        *,
        abort: Tensor | None = ...,
        outcome: Tensor | None = ...,
    ) -> None: ...
