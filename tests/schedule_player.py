"""A second executor in plain Python: it knows copies, transfers and collectives, and who waits.

It shares nothing with the C++ checks: a rank is a list of steps that take, do, send or join.
"""

from collections import Counter, deque

from schedule_mutations import apart

from pipert import Action, Schedule

COMPUTE = "FBIW"


def is_complete(schedule):
    """Each microbatch passes each stage of one copy of the model once, there and back."""
    per_copy = schedule.num_stages // schedule.placement.num_copies
    counts = Counter()
    for rank, actions in enumerate(schedule.actions):
        for action in apart(actions):
            if not 0 <= action.stage < schedule.num_stages:
                return False
            if not 0 <= action.microbatch < schedule.num_microbatches:
                return False
            if schedule.placement.ranks[action.stage] != rank:
                return False
            counts[action.kind, action.stage, action.microbatch] += 1
    for m in range(schedule.num_microbatches):
        passed = [s for s in range(schedule.num_stages) if any(counts[k, s, m] for k in COMPUTE)]
        if not passed or passed != list(range(passed[0], passed[0] + per_copy)):
            return False
        if passed[0] % per_copy:
            return False
        for s in passed:
            forwards, *backwards = (counts[kind, s, m] for kind in COMPUTE)
            if forwards != 1 or tuple(backwards) not in ((1, 0, 0), (0, 1, 1)):
                return False
    return True


class Neighbours:
    """Which stages data comes from and goes to."""

    def __init__(self, schedule):
        self.rank_of = schedule.placement.ranks
        self.per_copy = schedule.num_stages // schedule.placement.num_copies

    def source(self, action):
        """(kind of message, stage that makes it), or None."""
        s = action.stage
        if action.kind == "F" and s % self.per_copy > 0:
            return ("activation", s - 1)
        if action.kind in "BI" and (s + 1) % self.per_copy > 0:
            return ("gradient", s + 1)
        return None

    def reader(self, action):
        """The stage that reads what the action makes, or None."""
        s = action.stage
        if action.kind == "F" and (s + 1) % self.per_copy > 0:
            return s + 1
        if action.kind in "BI" and s % self.per_copy > 0:
            return s - 1
        return None


def is_ordered(schedule):
    """Each compute action of a complete schedule comes after its inputs of the same rank."""
    neighbours = Neighbours(schedule)
    for actions in schedule.actions:
        seen = set()
        all_made = {
            ("activation" if a.kind == "F" else "gradient", a.stage, a.microbatch)
            for a in apart(actions)
            if a.kind in "FBI"
        }
        for a in apart(actions):
            needs = []
            source = neighbours.source(a)
            if source is not None:
                needs.append((*source, a.microbatch))
            if a.kind in "BI":
                needs.append(("activation", a.stage, a.microbatch))
            if a.kind == "W":
                needs.append(("gradient", a.stage, a.microbatch))
            if any(need in all_made and need not in seen for need in needs):
                return False
            if a.kind in "FBI":
                kind = "activation" if a.kind == "F" else "gradient"
                seen.add((kind, a.stage, a.microbatch))
    return True


def collectives(schedule, tied=()):
    """(rank, stage) of each REDUCE_GRAD at which a rank joins -> (the ranks, a name)."""
    per_copy = schedule.num_stages // schedule.placement.num_copies
    groups = [{s for s in range(schedule.num_stages) if s % per_copy == k} for k in range(per_copy)]
    for more in tied:
        joined = [group for group in groups if group & set(more)]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    joins = {}
    for group in groups:
        last = {}
        for rank, actions in enumerate(schedule.actions):
            for action in apart(actions):
                if action.kind == "REDUCE_GRAD" and action.stage in group:
                    last[rank] = action.stage
        for rank, stage in last.items():
            joins[rank, stage] = (frozenset(last), min(group))
    return joins


class Play:
    """All ranks, played one against another until nobody can move."""

    def __init__(self, schedule, capacity=None, tied=()):
        self.capacity = capacity
        self.neighbours = Neighbours(schedule)
        self.is_lowered = any(
            "_" in a.kind and a.kind[-2:] in ("_F", "_B") and a.paired is None
            for actions in schedule.actions
            for a in actions
        )
        self.joins = collectives(schedule, tied)
        self.steps = [
            [step for action in apart(actions) for step in self.steps_of(rank, action)]
            for rank, actions in enumerate(schedule.actions)
        ]
        self.done = [0] * len(self.steps)
        self.flying = {}  # edge -> messages
        self.joined = set()  # (rank, name)
        moved = True
        while moved:
            moves = [self.move(rank) for rank in range(len(self.steps))]
            moved = any(moves)

    def steps_of(self, rank, action):
        rank_of = self.neighbours.rank_of
        s, m = action.stage, action.microbatch
        if action.kind in ("SEND_F", "RECV_B"):
            edge = (rank, rank_of[s + 1]) if action.kind == "SEND_F" else (rank_of[s + 1], rank)
            message = ("activation", s, m) if action.kind == "SEND_F" else ("gradient", s + 1, m)
            yield ("send" if action.kind == "SEND_F" else "take", edge, message)
        elif action.kind in ("SEND_B", "RECV_F"):
            edge = (rank, rank_of[s - 1]) if action.kind == "SEND_B" else (rank_of[s - 1], rank)
            message = ("gradient", s, m) if action.kind == "SEND_B" else ("activation", s - 1, m)
            yield ("send" if action.kind == "SEND_B" else "take", edge, message)
        elif action.kind == "REDUCE_GRAD":
            if (rank, s) in self.joins:
                yield ("join", *self.joins[rank, s])
        elif not self.is_lowered:
            source = self.neighbours.source(action)
            if source is not None and rank_of[source[1]] != rank:
                yield ("take", (rank_of[source[1]], rank), (*source, m))
            reader = self.neighbours.reader(action)
            if reader is not None and rank_of[reader] != rank:
                kind = "activation" if action.kind == "F" else "gradient"
                yield ("send", (rank, rank_of[reader]), (kind, s, m))

    def step_of(self, rank):
        done = self.done[rank]
        return self.steps[rank][done] if done < len(self.steps[rank]) else None

    def waits_for(self, rank):
        """The ranks that hold this one up at its next step."""
        kind, who, what = self.step_of(rank)
        if kind == "join":
            return [other for other in who if other != rank and (other, what) not in self.joined]
        if kind == "take":
            if self.capacity == 0:
                return [] if self.step_of(who[0]) == ("send", who, what) else [who[0]]
            return [] if what in self.flying.get(who, ()) else [who[0]]
        if self.capacity == 0:
            return [who[1]]  # the one that takes it moves both
        is_full = self.capacity is not None and len(self.flying.get(who, ())) >= self.capacity
        return [who[1]] if is_full else []

    def move(self, rank):
        step = self.step_of(rank)
        if step is None:
            return False
        kind, who, what = step
        if kind == "join":
            self.joined.add((rank, what))
        if self.waits_for(rank):
            return False
        if kind == "take" and self.capacity == 0:
            self.done[who[0]] += 1
        elif kind == "take":
            self.flying[who].remove(what)
        elif kind == "send":
            self.flying.setdefault(who, set()).add(what)
        self.done[rank] += 1
        return True

    @property
    def finished(self):
        return all(self.step_of(rank) is None for rank in range(len(self.steps)))

    def shortest_cycle(self):
        """How many ranks the shortest cycle of those that wait for each other has."""
        stuck = [rank for rank in range(len(self.steps)) if self.step_of(rank) is not None]
        best = None
        for first in stuck:
            distance = {first: 0}
            queue = deque([first])
            while queue:
                rank = queue.popleft()
                for other in self.waits_for(rank):
                    if other == first:
                        length = distance[rank] + 1
                        best = length if best is None else min(best, length)
                    elif other not in distance and self.step_of(other) is not None:
                        distance[other] = distance[rank] + 1
                        queue.append(other)
        return best


def spell_out(dice, schedule):
    """The same with SEND and RECV: each right where it is needed, or a little off."""
    neighbours = Neighbours(schedule)
    rank_of = schedule.placement.ranks
    ranks = []
    for rank, actions in enumerate(schedule.actions):
        out = []
        for action in apart(actions):
            letter = "F" if action.kind == "F" else "B"
            source = neighbours.source(action)
            if source is not None and rank_of[source[1]] != rank:
                out.append(Action(f"RECV_{letter}", action.stage, action.microbatch))
            out.append(action)
            reader = neighbours.reader(action)
            if reader is not None and rank_of[reader] != rank:
                out.append(Action(f"SEND_{letter}", action.stage, action.microbatch))
        for i in range(len(out) - 1):
            early, late = out[i], out[i + 1]
            may_move = late.kind.startswith("RECV") or early.kind.startswith("SEND")
            if may_move and dice.random() < 0.3:
                out[i], out[i + 1] = late, early
        ranks.append(out)
    return Schedule(ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches)


def add_reductions(dice, schedule):
    """The same with REDUCE_GRADs: behind the last action of each stage, or further behind."""
    ranks = [list(apart(actions)) for actions in schedule.actions]
    for stage, rank in enumerate(schedule.placement.ranks):
        actions = ranks[rank]
        last = max((i for i, a in enumerate(actions) if a.stage == stage), default=-1)
        place = dice.randint(last + 1, min(len(actions), last + 1 + dice.choice([0, 0, 1, 9])))
        actions.insert(place, Action("REDUCE_GRAD", stage))
    return Schedule(ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches)
