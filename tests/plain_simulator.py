"""What simulate() does, slowly and in another way: by fixed point.

Times are guessed to be 0. From the arrivals so far follows when each rank does what; from that,
when each message is ready to leave; and from all these, in the order of time, when each arrives.
That is repeated until nothing changes: each round settles at least the next moment.
"""

from dataclasses import dataclass, field

from pipert import Action, Costs, Schedule


class Deadlock(Exception):  # noqa: N818
    """There is no fixed point: ranks wait for each other, and times grow for ever."""


@dataclass
class Plain:
    """Exact for times that are whole numbers, and for actions that all take time."""

    schedule: Schedule
    costs: Costs
    starts: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    arrivals: dict[str, float] = field(default_factory=dict)  # by the action that sends
    begun: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self.place = {
            str(action): rank
            for rank, actions in enumerate(self.schedule.actions)
            for action in actions
        }
        self.link_of = {
            tuple(edge): number for number, link in enumerate(self.costs.links) for edge in link
        }
        self.sender = {}  # by reader
        self.reader = {}  # by sender
        for text, rank in self.place.items():
            for source in self._inputs(Action.parse(text)):
                if source in self.place and self.place[source] != rank:
                    self.sender[text] = source
                    self.reader[source] = text

    def _inputs(self, action):
        if action.kind == "F":
            return [f"{action.stage - 1}F{action.microbatch}"]
        if action.kind == "W":
            return []
        return [f"{action.stage + 1}{kind}{action.microbatch}" for kind in "BI"]

    def run(self):
        self.arrivals = dict.fromkeys(self.reader, 0.0)
        for _ in range(10 * len(self.place) + 10):
            ready = self._run_ranks()
            arrivals = self._run_links(ready)
            if arrivals == self.arrivals:
                return self
            self.arrivals = arrivals
        raise Deadlock

    def _run_ranks(self):
        """Starts and ends under the arrivals so far; returns when each message is ready."""
        ready = {}
        comes = {}  # blocking: when the reader comes to take it
        for actions in self.schedule.actions:
            came = 0.0  # behind the action before
            clock = 0.0
            for action in actions:
                text = str(action)
                if text in self.sender:
                    comes[self.sender[text]] = came
                    clock = max(clock, self.arrivals[self.sender[text]])
                self.starts[text] = clock
                clock += self._length(action)
                self.ends[text] = came = clock
                if text in self.reader:
                    ready[text] = clock
                    if self.costs.blocking:
                        clock = max(clock, self.arrivals[text])
        if self.costs.blocking:
            ready = {text: max(time, comes[text]) for text, time in ready.items()}
        return ready

    def _run_links(self, ready):
        free = {}
        arrivals = {}
        for text in sorted(ready, key=lambda text: (ready[text], self.place[text])):
            edge = (self.place[text], self.place[self.reader[text]])
            link = self.link_of.get(edge, edge)
            latency = _of_edge(self.costs.latency, edge)
            bandwidth = _of_edge(self.costs.bandwidth, edge)
            if bandwidth == 0:
                self.begun[text] = ready[text]
                arrivals[text] = ready[text] + latency
                continue
            self.begun[text] = max(ready[text], free.get(link, 0.0))
            free[link] = self.begun[text] + self._bytes(Action.parse(text)) / bandwidth
            arrivals[text] = free[link] + latency
        return arrivals

    def _length(self, action):
        costs, stage = self.costs, action.stage
        halves = _of_stage(costs.input, stage), _of_stage(costs.weight, stage)
        lengths = {"F": _of_stage(costs.forward, stage), "I": halves[0], "W": halves[1]}
        return lengths.get(action.kind, sum(halves))

    def _bytes(self, sender):
        if sender.kind == "F":
            return _of_stage(self.costs.bytes, sender.stage)
        return _of_stage(self.costs.gradient_bytes or self.costs.bytes, sender.stage - 1)


def _of_stage(values, stage):
    return values[0] if len(values) == 1 else values[stage]


def _of_edge(values, edge):
    if isinstance(values, dict):
        return values.get(edge, values.get(None, 0.0))
    return values
