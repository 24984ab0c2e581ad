"""Schedules that repeat one pattern, found by an exact solver (the extra `search`).

In the middle of a long step each rank does the same again and again, one microbatch and one period
later. A pattern gives each action of a microbatch a start; the next microbatch does the same a
period later. It is right if data comes in time, if no two actions of a rank meet modulo the period,
and if no rank ever holds more activations than its limit. With each time written as whole periods
and a time inside one, all three are constraints for OR-tools' CP-SAT, which finds the pattern whose
gradients come back first, or proves that none has this period. What a pattern leaves open, warmup
and cooldown, `Schedule.search` improves: give it the schedule among its `seeds`.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

from pipert._C import Action, Costs, Placement, Schedule, lower_bounds

_TICKS = 120  # of the longest rank's work: finer times make orders no better and the solver slow
_KINDS = ("F", "I", "W")
_Key = tuple[int, str]  # stage, kind


def periodic_schedule(
    costs: Costs,
    *,
    placement: Placement,
    num_microbatches: int,
    memory_limit: float | Sequence[float] | None = None,
    activation_size: float | Sequence[float] = 1.0,
    time_limit: float = 20.0,
) -> Schedule:
    """Finds a schedule of F, I and W that repeats one pattern, with the shortest period there is.

    Args:
        costs: Times of F, I and W, one number or one for each stage, and latencies. Times are
            rounded up to a 120th of the longest rank's work while the order is sought.
        placement: Of one copy of the model.
        num_microbatches: At least 1.
        memory_limit: What the activations of a rank may take, from F to the end of W, as in
            `Schedule.verify`; one number, or one for each rank; None: no limit.
        activation_size: Of one microbatch on a stage, likewise; one number, or one for each stage.
        time_limit: Seconds for all of it.

    Returns:
        A schedule that verifies under the limit.

    Raises:
        ImportError: Without `pip install 'pipert[search]'`.
        TimeoutError: No pattern was found in time; there is one.
        ValueError: Arguments that don't fit together, or a limit that no schedule can keep, with
            the least that would do.
    """
    solver = _import_solver()
    if not time_limit > 0:
        raise ValueError(f"time_limit must be above 0, got {time_limit}")
    lower_bounds(  # refuses what doesn't fit
        placement,
        num_microbatches,
        costs,
        memory_limit=memory_limit,
        activation_size=activation_size,
    )
    problem = _problem(costs, placement, memory_limit, activation_size)
    deadline = time.monotonic() + time_limit
    for period in _periods(problem):
        left = deadline - time.monotonic()
        starts = _solve(solver, problem, period, left / 3) if left > 0 else None
        if starts is not None:
            return _unroll(problem, starts, period, num_microbatches)
    raise TimeoutError(f"no pattern was found in {time_limit:g} s (time_limit)")


@dataclass(frozen=True)
class _Problem:
    """What the solver has to know, in ticks."""

    placement: Placement
    durations: dict[str, list[int]]  # by kind, then stage
    down: list[int]  # of the message from each stage to the next
    up: list[int]  # of its gradient
    limits: list[int] | None  # by rank, in the unit of sizes
    sizes: list[int]  # of an activation, by stage

    def alive(self, stage: int) -> int:
        """The least time from the start of a stage's F to the end of its W."""
        later = range(stage + 1, self.placement.num_stages)
        way = sum(self.durations["F"][other] + self.durations["I"][other] for other in later)
        transfers = sum(self.down[stage:]) + sum(self.up[stage:])
        return way + transfers + sum(self.durations[kind][stage] for kind in _KINDS)

    @property
    def shortest_period(self) -> int:
        """What a rank's work takes, or a microbatch in its share of the rank's memory."""
        shortest = 1
        for rank in range(self.placement.num_ranks):
            stages = self.placement.stages_of(rank)
            work = sum(self.durations[kind][stage] for kind in _KINDS for stage in stages)
            shortest = max(shortest, work)
            if self.limits is not None and self.limits[rank] > 0:
                held = sum(self.sizes[stage] * self.alive(stage) for stage in stages)
                shortest = max(shortest, -(-held // self.limits[rank]))
        return shortest

    @property
    def passage(self) -> int:
        """A microbatch's whole way: with this period there is never another beside it."""
        return sum(map(sum, [*self.durations.values(), self.down, self.up]))


def _import_solver() -> ModuleType:
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise ImportError(
            "periodic_schedule needs OR-tools: pip install 'pipert[search]'"
        ) from error
    return cp_model


def _spread(values: Any, size: int) -> list[float]:
    given = [float(value) for value in (values if hasattr(values, "__len__") else [values])]
    return given * size if len(given) == 1 else given


def _latency(costs: Costs, source: int, destination: int) -> float:
    if source == destination:
        return 0.0
    latency = costs.latency
    if isinstance(latency, dict):
        return latency.get((source, destination), latency.get(None, 0.0))
    return latency


def _problem(
    costs: Costs,
    placement: Placement,
    memory_limit: float | Sequence[float] | None,
    activation_size: float | Sequence[float],
) -> _Problem:
    stages = placement.num_stages
    times = {
        kind: _spread(getattr(costs, name), stages)
        for kind, name in zip(_KINDS, ("forward", "input", "weight"), strict=True)
    }
    longest = max(
        sum(times[kind][stage] for kind in _KINDS for stage in placement.stages_of(rank))
        for rank in range(placement.num_ranks)
    )

    def ticks(value: float) -> int:
        return math.ceil(value * _TICKS / longest - 1e-9) if longest > 0 else 0

    sizes = _spread(activation_size, stages)
    unit = max(sizes) / 1000 or 1.0
    limits = None
    if memory_limit is not None:
        given = _spread(memory_limit, placement.num_ranks)
        limits = [math.floor(limit / unit + 1e-6) for limit in given]
    return _Problem(
        placement=placement,
        durations={  # at least one each, so that starts tell what comes first
            kind: [max(1, ticks(value)) for value in values] for kind, values in times.items()
        },
        down=[ticks(_latency(costs, *edge)) for edge in pairwise(placement.ranks)],
        up=[ticks(_latency(costs, b, a)) for a, b in pairwise(placement.ranks)],
        limits=limits,
        sizes=[math.ceil(size / unit - 1e-6) for size in sizes],
    )


def _periods(problem: _Problem) -> Iterator[int]:
    """From the shortest there can be to one for which there surely is a pattern, 2 % at a time."""
    period, passage = problem.shortest_period, problem.passage
    while period < passage:
        yield period
        period += max(1, period // 50)
    yield max(period, passage)


class _Model:
    """The constraints of one period."""

    def __init__(self, solver: ModuleType, problem: _Problem, period: int) -> None:
        self.problem = problem
        self.period = period
        self.model = solver.CpModel()
        self.inside: dict[_Key, Any] = {}  # the start's time inside a period
        self.whole: dict[_Key, Any] = {}  # and the whole periods before it
        self.start: dict[_Key, Any] = {}
        self.num_stages = problem.placement.num_stages
        self.most_periods = 2 * (problem.passage // period + 2)
        for stage in range(self.num_stages):
            for kind in _KINDS:
                inside, whole = self._new_time()
                self.inside[stage, kind], self.whole[stage, kind] = inside, whole
                self.start[stage, kind] = whole * period + inside
        self.model.add(self.start[0, "F"] == 0)
        self._bring_data_in_time()
        for rank in range(problem.placement.num_ranks):
            self._keep_actions_apart(rank)
            if problem.limits is not None:
                self._keep_limit(rank, problem.limits[rank])
        weights = sum(self.start[stage, "W"] for stage in range(self.num_stages))
        self.model.minimize(1000 * self.start[0, "I"] + weights)

    def _new_time(self) -> tuple[Any, Any]:
        inside = self.model.new_int_var(0, self.period - 1, "")
        return inside, self.model.new_int_var(0, self.most_periods, "")

    def _end(self, stage: int, kind: str) -> Any:
        return self.start[stage, kind] + self.problem.durations[kind][stage]

    def _bring_data_in_time(self) -> None:
        add, start = self.model.add, self.start
        for stage in range(self.num_stages):
            add(start[stage, "I"] >= self._end(stage, "F"))
            add(start[stage, "W"] >= self._end(stage, "I"))
            if stage + 1 < self.num_stages:
                add(start[stage + 1, "F"] >= self._end(stage, "F") + self.problem.down[stage])
                add(start[stage, "I"] >= self._end(stage + 1, "I") + self.problem.up[stage])

    def _keep_actions_apart(self, rank: int) -> None:
        # Each action stands there twice, a period apart: two of them meet modulo the period just if
        # two of these do.
        new_interval = self.model.new_fixed_size_interval_var
        self.model.add_no_overlap(
            [
                new_interval(
                    self.inside[stage, kind] - shift, self.problem.durations[kind][stage], ""
                )
                for stage in self.problem.placement.stages_of(rank)
                for kind in _KINDS
                for shift in (0, self.period)
            ]
        )

    def _keep_limit(self, rank: int, limit: int) -> None:
        # When a forward starts, the activations of a stage are: the periods from its F to the end
        # of its W, one more if its F comes no later inside the period than that moment, one less if
        # that end does.
        stages = self.problem.placement.stages_of(rank)
        ends = {stage: self._end_of_activation(stage) for stage in stages}
        for reader in stages:
            moment = self.inside[reader, "F"]
            alive = 0
            for stage in stages:
                inside, whole = ends[stage]
                begun = 1 if stage == reader else self._not_after(self.inside[stage, "F"], moment)
                periods = whole - self.whole[stage, "F"] + begun - self._not_after(inside, moment)
                alive += self.problem.sizes[stage] * periods
            self.model.add(alive <= limit)

    def _end_of_activation(self, stage: int) -> tuple[Any, Any]:
        inside, whole = self._new_time()
        self.model.add(whole * self.period + inside == self._end(stage, "W"))
        return inside, whole

    def _not_after(self, time: Any, moment: Any) -> Any:
        holds = self.model.new_bool_var("")
        self.model.add(time <= moment).only_enforce_if(holds)
        self.model.add(time > moment).only_enforce_if(~holds)
        return holds


def _solve(
    solver: ModuleType, problem: _Problem, period: int, time_limit: float
) -> dict[_Key, int] | None:
    """The starts of one microbatch's actions, or None if there is no pattern, or none in time."""
    model = _Model(solver, problem, period)
    run = solver.CpSolver()
    run.parameters.max_time_in_seconds = time_limit
    run.parameters.num_workers = os.cpu_count() or 1
    if run.solve(model.model) not in (solver.OPTIMAL, solver.FEASIBLE):
        return None
    return {key: run.value(start) for key, start in model.start.items()}


def _unroll(
    problem: _Problem, starts: dict[_Key, int], period: int, num_microbatches: int
) -> Schedule:
    actions = []
    for rank in range(problem.placement.num_ranks):
        timed = sorted(
            # At the same time W goes first: it makes room.
            (starts[stage, kind] + microbatch * period, kind == "F", stage, kind, microbatch)
            for stage in problem.placement.stages_of(rank)
            for kind in _KINDS
            for microbatch in range(num_microbatches)
        )
        actions.append([Action(kind, stage, mb) for _, _, stage, kind, mb in timed])
    return Schedule(
        actions,
        placement=problem.placement,
        num_microbatches=num_microbatches,
        name="periodic",
    )
