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
    """Exact for times that are whole numbers, and for actions that all take time.

    A message is (the action that sends, the rank that it goes to); of one copy of the model.
    """

    schedule: Schedule
    costs: Costs
    starts: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    arrivals: dict[tuple[str, int], float] = field(default_factory=dict)  # by message
    begun: dict[tuple[str, int], float] = field(default_factory=dict)

    def __post_init__(self):
        self.place = {
            str(action): rank
            for rank, actions in enumerate(self.schedule.actions)
            for action in actions
        }
        self.link_of = {
            tuple(edge): number for number, link in enumerate(self.costs.links) for edge in link
        }
        self.reader = {}  # by message: of several on its rank the nearest
        self.bytes = {}  # by message
        self.received = {}  # messages by reader
        self.sent = {}  # messages by sender, the nearest reader's first
        for text, rank in self.place.items():
            self._send(text, rank)

    def _send(self, text, rank):
        action = Action.parse(text)
        kinds, step = ("F", 1) if action.kind == "F" else ("BI", -1)
        if action.kind == "W":
            return
        chain = (action.stage, [action.stage + step], self._chain_bytes(action))
        for maker, targets, size in [chain, *self.costs.skips]:
            if maker != action.stage or (targets[0] > maker) != (step > 0):
                continue
            readers = [f"{to}{kind}{action.microbatch}" for to in targets for kind in kinds]
            readers = [reader for reader in readers if reader in self.place]
            for to in {self.place[reader] for reader in readers} - {rank}:
                nearest = next(reader for reader in readers if self.place[reader] == to)
                known = self.reader.setdefault((text, to), nearest)
                self.reader[text, to] = min(known, nearest, key=lambda r: _distance(r, action))
                self.bytes[text, to] = self.bytes.get((text, to), 0) + size
        own = [message for message in self.reader if message[0] == text]
        self.sent[text] = sorted(own, key=lambda m: _distance(self.reader[m], action))
        for message in own:
            self.received.setdefault(self.reader[message], []).append(message)

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
                for message in self.received.get(text, ()):
                    comes[message] = came
                    clock = max(clock, self.arrivals[message])
                self.starts[text] = clock
                clock += self._length(action)
                self.ends[text] = came = clock
                for message in self.sent.get(text, ()):
                    ready[message] = came
                    if self.costs.blocking:
                        clock = max(clock, self.arrivals[message])
        if self.costs.blocking:
            ready = {message: max(time, comes[message]) for message, time in ready.items()}
        return ready

    def _run_links(self, ready):
        free = {}
        arrivals = {}
        for message in sorted(ready, key=lambda message: (ready[message], self.place[message[0]])):
            edge = (self.place[message[0]], message[1])
            link = self.link_of.get(edge, edge)
            latency = _of_edge(self.costs.latency, edge)
            bandwidth = _of_edge(self.costs.bandwidth, edge)
            if bandwidth == 0:
                self.begun[message] = ready[message]
                arrivals[message] = ready[message] + latency
                continue
            self.begun[message] = max(ready[message], free.get(link, 0.0))
            free[link] = self.begun[message] + self.bytes[message] / bandwidth
            arrivals[message] = free[link] + latency
        return arrivals

    def _length(self, action):
        costs, stage = self.costs, action.stage
        halves = _of_stage(costs.input, stage), _of_stage(costs.weight, stage)
        lengths = {"F": _of_stage(costs.forward, stage), "I": halves[0], "W": halves[1]}
        return lengths.get(action.kind, sum(halves))

    def _chain_bytes(self, sender):
        if sender.kind == "F":
            return _of_stage(self.costs.bytes, sender.stage)
        return _of_stage(self.costs.gradient_bytes or self.costs.bytes, sender.stage - 1)


def _distance(reader, action):
    return abs(Action.parse(reader).stage - action.stage)


def _of_stage(values, stage):
    return values[0] if len(values) == 1 else values[stage]


def _of_edge(values, edge):
    if isinstance(values, dict):
        return values.get(edge, values.get(None, 0.0))
    return values
