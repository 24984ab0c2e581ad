"""The same steps by modules and by native stages."""

from plain_loop import same_bits

import pipert


def run_both(make, steps, kinds=None, **options):
    """Runs `steps(pipe, stages)`, which yields tensors, as modules and natively; compares bits.

    Args:
        make: gives fresh stages.
        kinds: the native pipeline's `stage_kinds` at the end; a string: that of stage 0, in part.

    Returns:
        The native pipeline's `loss_kind` at the end.
    """
    options = {"num_microbatches": 2, "schedule": "1f1b", **options}
    seen = {}
    for kind in ("module", "native"):
        stages = make()
        with pipert.Pipeline(stages, stage_kind=kind, **options) as pipe:
            seen[kind] = [value.detach().clone() for value in steps(pipe, stages)]
            found, loss_kind = pipe.stage_kinds, pipe.loss_kind
    for step, (a, b) in enumerate(zip(seen["native"], seen["module"], strict=True)):
        assert same_bits(a, b), (step, a, b)
    if isinstance(kinds, str):
        assert kinds in found[0]
    elif kinds is not None:
        assert found == kinds
    return loss_kind
