"""An executor of schedules in plain Python: slow and obvious, to check verify() against.

It shares nothing with the C++ checks: it counts the work, then plays the ranks one
against another with real queues.
"""

import random
from collections import Counter


def is_complete(schedule):
    """Each (stage, microbatch) has one F and one backward, whole or in halves, on its owner."""
    counts = Counter()
    for rank, actions in enumerate(schedule.actions):
        for action in actions:
            if not 0 <= action.stage < schedule.num_stages:
                return False
            if not 0 <= action.microbatch < schedule.num_microbatches:
                return False
            if schedule.placement.ranks[action.stage] != rank:
                return False
            counts[str(action)] += 1
    for stage in range(schedule.num_stages):
        for m in range(schedule.num_microbatches):
            backward = tuple(counts[f"{stage}{kind}{m}"] for kind in "BIW")
            if counts[f"{stage}F{m}"] != 1 or backward not in ((1, 0, 0), (0, 1, 1)):
                return False
    return True


class Player:
    """One rank: it takes an action's inputs, does it, then sends the result."""

    def __init__(self, rank, actions):
        self.rank = rank
        self.actions = actions
        self.position = 0
        self.sending = None  # (edge, message) while the action is done but its result is not sent

    @property
    def finished(self):
        return self.position == len(self.actions)


def can_finish(schedule, capacity=None, rendezvous=False, seed=0):
    """Plays a complete schedule in a random order of ranks; False if they get stuck."""
    rendezvous = rendezvous or capacity == 0
    rank_of = schedule.placement.ranks
    players = [Player(rank, actions) for rank, actions in enumerate(schedule.actions)]
    local = [set() for _ in players]  # what each rank has computed or taken
    flying = {}  # edge -> messages
    dice = random.Random(seed)

    def inputs(action):
        s, m = action.stage, action.microbatch
        if action.kind == "F":
            return [("activation", s - 1, m)] if s > 0 else []
        if action.kind == "W":
            return [("half", s, m)]
        gradient = [("gradient", s + 1, m)] if s + 1 < len(rank_of) else []
        return [("activation", s, m), *gradient]

    def sender_of(message, rank):
        owner = rank_of[message[1]]
        return None if owner == rank else owner

    def try_take(player, action):
        for message in inputs(action):
            sender = sender_of(message, player.rank)
            if sender is None:
                if message not in local[player.rank]:
                    return False
                continue
            edge = (sender, player.rank)
            if message in local[player.rank]:
                continue
            if rendezvous:
                if players[sender].sending != (edge, message):
                    return False
                players[sender].sending = None
                players[sender].position += 1
            else:
                if message not in flying.get(edge, set()):
                    return False
                flying[edge].remove(message)
            local[player.rank].add(message)
        return True

    def compute(player, action):
        s, m = action.stage, action.microbatch
        if action.kind == "W":
            player.position += 1
            return
        if action.kind == "I":
            local[player.rank].add(("half", s, m))
        message = ("activation" if action.kind == "F" else "gradient", s, m)
        local[player.rank].add(message)
        reader = s + 1 if action.kind == "F" else s - 1
        if 0 <= reader < len(rank_of) and rank_of[reader] != player.rank:
            player.sending = ((player.rank, rank_of[reader]), message)
        else:
            player.position += 1

    def step(player):
        if player.finished:
            return False
        if player.sending is None:
            action = player.actions[player.position]
            if not try_take(player, action):
                return False
            compute(player, action)
            return True
        edge, message = player.sending
        queue = flying.setdefault(edge, set())
        if rendezvous or (capacity is not None and len(queue) >= capacity):
            return False
        queue.add(message)
        player.sending = None
        player.position += 1
        return True

    while True:
        progress = [step(player) for player in dice.sample(players, len(players))]
        if not any(progress):
            return all(player.finished for player in players)


def is_good(schedule, **options):
    return is_complete(schedule) and can_finish(schedule, **options)
