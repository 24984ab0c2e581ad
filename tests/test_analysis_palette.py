import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from itertools import combinations, pairwise

import numpy as np
import pytest

from pipert import Action, Costs, Schedule, render_svg

SVG = "{http://www.w3.org/2000/svg}"


def fills(schedule, costs=None):
    """The colours of each kind's boxes, by microbatch (-1: none)."""
    found = defaultdict(dict)
    timeline = schedule.simulate(costs or Costs())
    for group in ElementTree.fromstring(render_svg([("", timeline)])).iter(f"{SVG}g"):
        action = Action.parse(group.find(f"{SVG}title").text)
        fill = group.find(f"{SVG}rect").get("fill")
        microbatch = -1 if action.microbatch is None else action.microbatch
        found[action.kind][microbatch] = tuple(int(fill[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return found


def linear(colour):
    colour = np.array(colour)
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear sRGB, D65."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    ratio = to_xyz @ rgb / to_xyz.sum(axis=1)
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# What readers see of linear sRGB: Machado, Oliveira and Fernandes 2009, severity 1.
SIGHTS = {
    "full": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def every_kind():
    """The colours of all kinds; those of UPDATE and of what moves data have no shades."""
    found = fills(Schedule.build("dualpipe_v", num_ranks=4, num_microbatches=8))
    again = [f"0{kind}{m}" for m in range(8) for kind in "FRB"]
    schedule = Schedule([["0UNSHARD", "0F8", "0OFFLOAD8", "0RELOAD8", "0B8", *again]])
    costs = Costs(unshard=1, offload=1, reload=1, update=1, reduce=1)
    found["R"] = fills(schedule, costs)["R"]
    found["UPDATE"] = fills(schedule, costs)["UPDATE"]
    found["moves"] = fills(schedule, costs)["REDUCE_GRAD"]
    for kind in ("UNSHARD", "OFFLOAD", "RELOAD"):
        assert set(fills(schedule, costs)[kind].values()) == set(found["moves"].values())
    return found


@pytest.mark.parametrize("sight", SIGHTS)
def test_kinds_are_told_apart_by_every_reader(sight):
    kinds = every_kind()
    assert set(kinds) == {"F", "B", "I", "W", "R", "UPDATE", "moves"}
    for one, other in combinations(kinds, 2):
        seen = [
            [lab(np.clip(SIGHTS[sight] @ linear(c), 0, 1)) for c in kinds[kind].values()]
            for kind in (one, other)
        ]
        apart = min(np.linalg.norm(a - b) for a in seen[0] for b in seen[1])
        assert apart > 12, f"{one} and {other}: {apart:.1f} apart"


def test_kinds_are_told_apart_in_grey():
    ranges = sorted(
        (min(lightness), max(lightness))
        for lightness in (
            [lab(linear(c))[0] for c in shades.values()] for shades in every_kind().values()
        )
    )
    assert all(below[1] + 2 < above[0] for below, above in pairwise(ranges))


def test_microbatches_are_shades_that_begin_anew_after_eight():
    shades = fills(Schedule.build("1f1b", num_ranks=2, num_microbatches=12))["F"]
    lightness = [lab(linear(shades[microbatch]))[0] for microbatch in range(12)]
    assert all(a > b + 1 for a, b in pairwise(lightness[:8]))
    assert lightness[8:] == lightness[:4]


def test_numbers_can_be_read_on_their_boxes():
    for kind, shades in every_kind().items():
        for shade in shades.values():
            luminance = 0.2126 * linear(shade)[0] + 0.7152 * linear(shade)[1]
            luminance += 0.0722 * linear(shade)[2]
            is_white = kind in ("F", "R", "moves")
            contrast = 1.05 / (luminance + 0.05) if is_white else (luminance + 0.05) / 0.058
            assert contrast >= 4.3, f"{kind}: {contrast:.2f}"
