"""Schedules with every backward in two halves, for tests."""

from pipert import Action, Schedule


def in_halves(schedule, delay=1):
    """The same order with I for B; each W comes `delay` backwards of its rank later, or at the end.

    B and W of a stage keep the order of their microbatches, so gradients add up as before.
    """
    ranks = []
    for actions in schedule.actions:
        halves, late = [], []
        for action in actions:
            if action.kind != "B":
                halves.append(action)
                continue
            halves.append(Action("I", action.stage, action.microbatch))
            late.append(Action("W", action.stage, action.microbatch))
            if len(late) > delay:
                halves.append(late.pop(0))
        ranks.append(halves + late)
    return Schedule(ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches)
