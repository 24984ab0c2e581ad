"""Random actions and random good schedules, for hypothesis."""

from dataclasses import dataclass

from hypothesis import strategies as st

from pipert import Action, Placement, Schedule

COMPUTE = ["F", "B", "I", "W", "R"]
TRANSFERS = ["SEND_F", "RECV_F", "SEND_B", "RECV_B", "OFFLOAD", "RELOAD"]
WITHOUT_MICROBATCH = ["UNSHARD", "RESHARD", "REDUCE_GRAD"]
INDEX = st.integers(min_value=0, max_value=999_999_999)
SLICE = st.one_of(st.just(""), st.integers(0, 9999).map("s{}".format))
MADE = st.integers(1, 999_999_999).map("v{}".format)
VERSION = st.one_of(st.just(""), MADE)


@st.composite
def action_texts(draw):
    def single(kinds, version=VERSION):
        kind = draw(st.sampled_from(kinds))
        return f"{draw(INDEX)}{kind}{draw(INDEX)}{draw(SLICE)}{draw(version)}"

    form = draw(st.sampled_from(["compute", "transfer", "stage", "update", "pair"]))
    if form == "compute":
        return single(COMPUTE)
    if form == "transfer":
        return single(TRANSFERS, st.just(""))
    if form == "stage":
        return f"{draw(INDEX)}{draw(st.sampled_from(WITHOUT_MICROBATCH))}"
    if form == "update":
        return f"{draw(INDEX)}UPDATE{draw(MADE)}"
    return f"({single(['F'])};{single(['B', 'I'])})OVERLAP_F_B"


@dataclass
class Work:
    """One action to be done, and what has to be done before it."""

    text: str
    rank: int
    needs: list


def all_work(rank_of, is_split, copy_of, num_copies):
    """Every action of a complete schedule, by text, with its inputs (design.md, "The Schedule").

    `copy_of`: by microbatch, the copy of the model that it passes.
    """
    size = len(rank_of) // num_copies
    work = []

    def gradient(stage, microbatch):
        return f"{stage}{'I' if is_split[stage, microbatch] else 'B'}{microbatch}"

    for stage, rank in enumerate(rank_of):
        for m in (m for m, own in enumerate(copy_of) if own == stage // size):
            work.append(Work(f"{stage}F{m}", rank, [f"{stage - 1}F{m}"] if stage % size else []))
            is_last = (stage + 1) % size == 0
            needs = [f"{stage}F{m}"] + ([] if is_last else [gradient(stage + 1, m)])
            work.append(Work(gradient(stage, m), rank, needs))
            if is_split[stage, m]:
                work.append(Work(f"{stage}W{m}", rank, [f"{stage}I{m}"]))
    return work


@st.composite
def good_schedules(draw, min_ranks=1, max_ranks=4, max_stages=6, max_microbatches=4, num_copies=1):
    """Schedules that are right by construction: the order in which some run did its work.

    Placements are arbitrary, each backward is split into I and W or not, by itself, and a
    microbatch passes any of the copies of the model.
    """
    num_ranks = draw(st.integers(min_ranks, max_ranks))
    least = -(-num_ranks // num_copies)
    num_stages = num_copies * draw(st.integers(least, max(least, max_stages // num_copies)))
    num_microbatches = draw(st.integers(1, max_microbatches))
    random = draw(st.randoms(use_true_random=False))
    rank_of = [*range(num_ranks), *random.choices(range(num_ranks), k=num_stages - num_ranks)]
    random.shuffle(rank_of)
    is_split = {
        (stage, m): random.random() < 0.5
        for stage in range(num_stages)
        for m in range(num_microbatches)
    }
    copy_of = [random.randrange(num_copies) for _ in range(num_microbatches)]
    waiting = all_work(rank_of, is_split, copy_of, num_copies)
    done = set()
    ranks = [[] for _ in range(num_ranks)]
    while waiting:
        ready = [work for work in waiting if done.issuperset(work.needs)]
        work = random.choice(ready)
        waiting.remove(work)
        done.add(work.text)
        ranks[work.rank].append(Action.parse(work.text))
    return Schedule(
        ranks,
        placement=Placement(num_ranks, rank_of, num_copies),
        num_microbatches=num_microbatches,
        name="random",
    )


def with_pairs(schedule, random):
    """Some neighbours, a forward and a backward, become a pair."""
    ranks = []
    for actions in schedule.actions:
        row, i = [], 0
        while i < len(actions):
            pair = actions[i : i + 2]
            kinds = [a.kind for a in pair]
            if kinds in (["F", "B"], ["F", "I"]) and random.random() < 0.7:
                row.append(f"({pair[0]};{pair[1]})OVERLAP_F_B")
                i += 2
            else:
                row.append(str(actions[i]))
                i += 1
        ranks.append(row)
    return Schedule(ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches)


@st.composite
def mutated_schedules(draw):
    """A good schedule after one to three random mistakes, which may cancel out."""
    schedule = draw(good_schedules())
    ranks = [list(actions) for actions in schedule.actions]
    random = draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.integers(1, 3))):
        mutation = draw(st.sampled_from(["drop", "double", "swap", "move", "replace"]))
        rank = random.choice([r for r, actions in enumerate(ranks) if actions] or [0])
        actions = ranks[rank]
        if not actions:
            continue
        i = random.randrange(len(actions))
        if mutation == "drop":
            del actions[i]
        elif mutation == "double":
            actions.insert(random.randrange(len(actions) + 1), actions[i])
        elif mutation == "swap":
            j = random.randrange(len(actions))
            actions[i], actions[j] = actions[j], actions[i]
        elif mutation == "move":
            other = random.choice(ranks)
            action = actions.pop(i)
            other.insert(random.randrange(len(other) + 1), action)
        else:
            actions[i] = Action(
                random.choice("FBIW"),
                random.randrange(schedule.num_stages + 1),
                random.randrange(schedule.num_microbatches + 1),
            )
    return Schedule(ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches)
