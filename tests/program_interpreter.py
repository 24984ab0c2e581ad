"""An interpreter of Programs in plain Python: slow and obvious, without threads.

It plays all ranks against each other, one random instruction at a time, in two ways:
`run_in_issue_order`, as the Executor does, and `run_by_lanes`, where only marks order the lanes
of a rank, as streams would. Values are texts; every slot access is checked.
"""

import random


class RaceError(AssertionError):
    """A slot was used while somebody else needed it, or a value was not where it should be."""


def check(condition, text):
    if not condition:
        raise RaceError(text)


def expected_reads(action, stages_per_copy, graph):
    """What an action must find in its input slots: texts of what made it, nearest first.

    `graph`: a StageGraph, of what comes beyond the chain.
    """
    stage = action.stage % stages_per_copy
    copy = action.stage - stage
    if action.kind == "F":
        makers = [stage - 1] if stage else []
        makers += [source for source, reader in graph.activations if reader == stage]
        return [f"{copy + maker}F{action.microbatch}" for maker in sorted(makers, reverse=True)]
    if action.kind in "BI":
        makers = [stage + 1] if stage + 1 < stages_per_copy else []
        makers += [source for source, reader in graph.gradients if reader == stage]
        return [f"gradient {copy + maker},{action.microbatch}" for maker in sorted(makers)]
    return []


def result(action):
    if action.kind == "F":
        return str(action)
    return f"gradient {action.stage},{action.microbatch}"


class RankState:
    def __init__(self, program, num_copies):
        self.program = program
        self.stages_per_copy = program.num_stages // num_copies
        self.instructions = program.instructions
        self.slot_specs = program.slots
        self.values = {}  # slot -> value
        self.posted = {}  # receive slot -> sequence, from Recv until the message is read
        self.marks = set()
        self.done = []  # actions, in order
        self.moved = {}  # (stage, microbatch) of activations -> "host" or "device again"

    def edge(self, slot):
        spec = self.slot_specs[slot]
        return spec["source"], spec["destination"]

    def waits_are_set(self, instruction):
        return self.marks.issuperset(instruction["waits"])

    def finish(self, instruction):
        if instruction["mark"] is not None:
            check(instruction["mark"] not in self.marks, f"mark set twice: {instruction['text']}")
            self.marks.add(instruction["mark"])

    def compute(self, instruction):
        """Reads, checks and writes the slots of a Run whose inputs are all there."""
        action = instruction["action"]
        values = []
        for slot in instruction["reads"]:
            check(slot in self.values, f"empty slot read: {instruction['text']}")
            values.append(self.values.pop(slot))
            self.posted.pop(slot, None)
        for slot, value in zip(instruction["keeps"], values, strict=True):
            check(slot not in self.values, f"kept in a full slot: {instruction['text']}")
            if slot is not None:
                self.values[slot] = value
        activations = (action.stage, action.microbatch)
        check(self.moved.get(activations) != "host", f"{action} needs what is on the host")
        if action.kind != "F":
            check(self.has_run("F", *activations), f"{action} before its forward")
        wanted = expected_reads(action, self.stages_per_copy, self.program.stage_graph)
        check(values == wanted, f"{action} read {values}, expected {wanted}")
        self.done.append(action)
        for slot in instruction["writes"]:
            check(slot not in self.values, f"full slot written: {instruction['text']}")
            self.values[slot] = result(action)

    def has_run(self, kind, stage, microbatch):
        return any((a.kind, a.stage, a.microbatch) == (kind, stage, microbatch) for a in self.done)

    def move(self, instruction):
        """Moves activations that are there, and that nobody has used yet."""
        action = instruction["action"]
        activations = (action.stage, action.microbatch)
        check(self.has_run("F", *activations), f"{action} before its forward")
        used = any(self.has_run(kind, *activations) for kind in "RBI")
        check(not used, f"{action} after its backward")
        leaves = action.kind == "OFFLOAD"
        before = self.moved.get(activations)
        check(before == (None if leaves else "host"), f"{action} of what is {before}")
        self.moved[activations] = "host" if leaves else "device again"
        self.done.append(action)


def run_in_issue_order(programs, seed=0, sends_may_wait=False, num_copies=1):
    """Plays the programs as the Executor does: one instruction after the other on each rank.

    A Run takes a message off the wire when it needs it, a Release waits until the peer has taken
    its message (only at the end, unless `sends_may_wait`), everything else goes on at once.
    Returns the actions done, by rank, or None if the ranks wait for each other.
    """
    ranks = [RankState(program, num_copies) for program in programs]
    positions = [0] * len(ranks)
    wire = {}  # (edge, sequence) -> (message, value)
    taken = set()  # (edge, sequence)
    recv_of = {}  # (rank, slot) -> the Recv that was posted last
    last_run = [
        max((i for i, x in enumerate(r.instructions) if x["kind"] == "run"), default=-1)
        for r in ranks
    ]
    dice = random.Random(seed)

    def step(rank):
        state = ranks[rank]
        at = positions[rank]
        instruction = state.instructions[at]
        kind = instruction["kind"]
        if kind == "recv":
            slot = instruction["slot"]
            check(slot not in state.posted, f"slot posted twice: {instruction['text']}")
            state.posted[slot] = instruction["sequence"]
            recv_of[rank, slot] = instruction
        elif kind == "run":
            keys = {
                slot: (state.edge(slot), state.posted[slot])
                for slot in instruction["reads"]
                if slot in state.posted
            }
            if not wire.keys() >= set(keys.values()):
                return False
            for slot, key in keys.items():
                message, value = wire.pop(key)
                check(message == recv_of[rank, slot]["message"], f"{message} came")
                taken.add(key)
                state.values[slot] = value
            state.compute(instruction)
        elif kind == "move":
            state.move(instruction)
        elif kind == "send":
            slot = instruction["slot"]
            check(slot in state.values, f"empty slot sent: {instruction['text']}")
            key = (state.edge(slot), instruction["sequence"])
            wire[key] = (instruction["message"], state.values[slot])
        else:
            slot = instruction["slot"]
            key = (state.edge(slot), instruction["sequence"])
            if key not in taken:
                may_wait = sends_may_wait or at > last_run[rank]
                check(may_wait, f"a release in mid-step waits: {instruction['text']}")
                return False
            del state.values[slot]
        positions[rank] += 1
        return True

    if not _play(
        dice, range(len(ranks)), step, lambda r: len(ranks[r].instructions) - positions[r]
    ):
        return None
    check(not wire, f"never received: {wire}")
    return [state.done for state in ranks]


def run_by_lanes(programs, seed=0, num_copies=1):
    """Plays the programs with every lane on its own: only lane order and marks hold them back.

    A message moves when its Send and its Recv both are at the head of their lanes: no buffer in
    between. Returns the actions done, by rank, or None if the lanes wait for each other.
    """
    ranks = [RankState(program, num_copies) for program in programs]
    queues = {}  # (rank, lane) -> instructions left
    for rank, state in enumerate(ranks):
        for instruction in state.instructions:
            queues.setdefault((rank, instruction["lane"]), []).append(instruction)
    dice = random.Random(seed)

    def is_ready(rank, instruction):
        return ranks[rank].waits_are_set(instruction)

    def matching_recv(edge):
        for (rank, lane), queue in queues.items():
            if not queue or rank != edge[1]:
                continue
            head = queue[0]
            if head["kind"] == "recv" and ranks[rank].edge(head["slot"]) == edge:
                return rank, lane, head
        return None

    def step(place):
        rank, _ = place
        state = ranks[rank]
        instruction = queues[place][0]
        if not is_ready(rank, instruction) or instruction["kind"] == "recv":
            return False  # a Recv is done by its Send
        if instruction["kind"] == "run":
            state.compute(instruction)
        elif instruction["kind"] == "move":
            state.move(instruction)
        elif instruction["kind"] == "send":
            slot = instruction["slot"]
            found = matching_recv(state.edge(slot))
            if found is None or not is_ready(found[0], found[2]):
                return False
            peer, lane, recv = found
            check(recv["sequence"] == instruction["sequence"], f"order: {instruction['text']}")
            check(recv["message"] == instruction["message"], f"message: {instruction['text']}")
            check(slot in state.values, f"empty slot sent: {instruction['text']}")
            check(recv["slot"] not in ranks[peer].values, f"overwritten: {recv['text']}")
            ranks[peer].values[recv["slot"]] = state.values.pop(slot)
            queues[peer, lane].pop(0)
            ranks[peer].finish(recv)
        state.finish(instruction)
        queues[place].pop(0)
        return True

    if not _play(dice, list(queues), step, lambda place: len(queues[place])):
        return None
    for state in ranks:
        check(not state.values, f"left in slots: {state.values}")
    return [state.done for state in ranks]


def _play(dice, places, step, num_left):
    """Steps random places until all are done (True) or none can move (False)."""
    while True:
        waiting = [place for place in places if num_left(place)]
        if not waiting:
            return True
        dice.shuffle(waiting)
        if not any(step(place) for place in waiting if num_left(place)):
            return False
