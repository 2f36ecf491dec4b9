"""The ramp of hard negatives: early in a training they weigh nothing, later as much as the config says.

Etsy trains on uniform negatives first and then raises the weight of hard ones linearly (Jha et al., arXiv 2306.04833). A
model that cannot yet tell random items apart learns little from items that are nearly right.
"""

from collections.abc import Sequence


def hard_scale(step: int, steps: int, ramp: Sequence[float] | None) -> float:
    """The factor in [0, 1] on the weight of hard negatives in a step (from 0) of a training of `steps` steps.

    `ramp`: start and end as shares of the training; None: always 1. It depends on the number of the step only, so a training
    that resumes continues at the same place.

    >>> [hard_scale(step, 10, [0.2, 0.6]) for step in (0, 2, 3, 4, 6, 9)]
    [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    """
    if ramp is None:
        return 1.0
    start, end = (share * steps for share in ramp)
    if step >= end:
        return 1.0
    return 0.0 if step <= start else (step - start) / (end - start)
