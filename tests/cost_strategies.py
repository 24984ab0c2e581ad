"""Random costs for hypothesis, in whole numbers, so that sums are exact."""

from hypothesis import strategies as st

from pipert import Costs


@st.composite
def skips_for(draw, num_stages):
    """Any number of skips between stages of one copy of the model, to one reader or several."""
    skips = []
    for maker in draw(st.lists(st.integers(0, num_stages - 1), max_size=4)):
        sides = [range(maker + 1, num_stages), range(maker - 1, -1, -1)]
        side = draw(st.sampled_from([side for side in sides if side] or [()]))
        if side:
            readers = draw(st.sets(st.sampled_from(side), min_size=1))
            skips.append((maker, [s for s in side if s in readers], draw(st.integers(0, 16))))
    return skips


@st.composite
def costs_for(draw, schedule, *, blocking=False, shared=True, skipping=False):
    """Costs of every stage and edge; with `shared`, links with several edges of any ranks.

    With `skipping` stages that are no neighbours exchange something, too.
    """
    num_ranks = schedule.num_ranks
    edges = [(a, b) for a in range(num_ranks) for b in range(num_ranks) if a != b]

    def by_stage(low, high):
        number = st.integers(low, high)
        return draw(
            st.one_of(
                number, st.lists(number, min_size=schedule.num_stages, max_size=schedule.num_stages)
            )
        )

    def by_edge(values):
        if not edges or draw(st.booleans()):
            return draw(values)
        return draw(st.dictionaries(st.one_of(st.none(), st.sampled_from(edges)), values))

    links = []
    if shared and edges:
        number_of = draw(st.lists(st.integers(0, 2), min_size=len(edges), max_size=len(edges)))
        links = [
            [edge for edge, number in zip(edges, number_of, strict=True) if number == link]
            for link in range(2)
        ]
    latency = by_edge(st.integers(1 if blocking else 0, 5))
    if blocking and isinstance(latency, dict):
        latency.setdefault(None, 1)  # a transfer that takes no time leaves the order open
    return Costs(
        forward=by_stage(1, 6),
        input=by_stage(1, 6),
        weight=by_stage(1, 6),
        latency=latency,
        bandwidth=by_edge(st.sampled_from([0, 0.5, 1, 2, 4])),
        bytes=by_stage(0, 16),
        gradient_bytes=draw(st.one_of(st.none(), st.integers(0, 16))),
        links=links,
        blocking=blocking,
        skips=draw(skips_for(schedule.placement.stages_per_copy)) if skipping else [],
    )
