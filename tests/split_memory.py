"""Peak memory of split backwards under another rule than the simulator's."""


def peaks_until_input_half(schedule):
    """By rank: activations alive at once if I freed them (the simulator keeps them until W)."""
    peaks = []
    for actions in schedule.actions:
        alive, peak = 0, 0
        for action in actions:
            alive += {"F": 1, "B": -1, "I": -1, "W": 0}[action.kind]
            peak = max(peak, alive)
        peaks.append(peak)
    return peaks
