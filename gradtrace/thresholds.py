"""Every number that training is judged by, once, and the functions that ask it.

| name                 | value | what is judged                                         | source   |
|----------------------|-------|--------------------------------------------------------|----------|
| CLIPPED_OFTEN        | 0.95  | share of its steps from which on clipping sets the lr  | runs     |
| SUGGESTED_PERCENTILE | 95    | percentile of the norms that a `max_norm` takes        | practice |
| ORDINARY_PERCENTILE  | 99    | percentile of the norms up to which they are ordinary  | practice |
| NEVER_MARGIN         | 10    | a threshold so many ordinary norms high stops nothing  | meaning  |
| NORMS_BEYOND         | 5     | norms that must lie beyond a percentile                | chance   |
| NORMS_KEPT           | 65536 | newest norms that percentiles are of                   | memory   |
| TURNED               | 0.9   | cosine below which clipping turned the gradient        | meaning  |
| ODD_REPEATS          | 5     | times that something odd is seen before it is told     | meaning  |
| VANISHING_SHARE      | 1e-7  | share of the global norm below which a layer vanishes  | float32  |
| EXPLODING_RATIO      | 100   | ratio to its usual norm above which a layer's explodes | meaning  |
| SKIPPED_OFTEN        | 0.5   | share of steps above which the AMP scaler skips most   | meaning  |
| SKIPPED_STREAK       | 10    | steps skipped in a row that are no search for a scale  | torch    |

The source in full stands below each. "Runs" are 57 faulty and 33 healthy small networks and 23
healthy models of Hugging Face and torchvision, each looked at for what separates the two kinds.

Numbers that belong to one method stand with its formula, as those of the spike rule in
`gradtrace.detect.spikes`; how long an alert looks and waits stands in `gradtrace.monitoring.rules`.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

CLIPPED_OFTEN: Final = 0.95
"""What separated the runs that clipping had slowed down, with a median coefficient below 0.05 and
under SGD, for Adam cancels a constant factor. Less is no fault: AutoClip (Seetharaman et al. 2020)
clips 90 % of a steady run on purpose."""

SUGGESTED_PERCENTILE: Final = 95
"""One step in twenty is clipped then: what stands out, and enough of it to show in a short run."""

ORDINARY_PERCENTILE: Final = 99

NEVER_MARGIN: Final = 10.0
"""Ten times the ordinary norm is a spike, and would pass whole."""

NORMS_BEYOND: Final = 5
"""It makes 100 norms for the 95th percentile and 500 for the 99th. Where m are expected beyond the
true percentile, sqrt(m) more or fewer are by chance: the 95th of 100 norms is between the 93rd and
the 97th."""

NORMS_KEPT: Final = 1 << 16
"""Half a megabyte; a run that is longer is judged by how it goes now."""

TURNED: Final = 0.9
"""An angle of 26 degrees; value clipping that touches a few outliers stays above it."""

ODD_REPEATS: Final = 5
"""Once may be an accident, as a last batch or a first step is."""

VANISHING_SHARE: Final = 1e-7
"""The resolution of float32, 2^-23: beside the other layers' the gradient is a rounding error. No
absolute norm tells: a layer below 1e-7 or above 1e4 was in 16 of 56 healthy models."""

EXPLODING_RATIO: Final = 100.0
"""To the layer's own past: a healthy gradient before a batch norm was 3,600 times its weight. Two
decades are a judgement; a spike reaches them too, but does not stay there, as the alert asks."""

SKIPPED_OFTEN: Final = 0.5
"""More than half: the run stands still."""

SKIPPED_STREAK: Final = 10
"""`torch.amp.GradScaler` begins at 65,536 and halves the scale at each: after ten it is 64, which
training that half precision suits at all needs no less than."""


def clips_too_often(share: float) -> bool:
    """Whether clipping that changes this share of the steps it runs on acts as a learning rate."""
    return share >= CLIPPED_OFTEN


def suggested_clip_norm(norms: npt.NDArray[np.float64]) -> float | None:
    """The threshold for `clip_grad_norm_` that catches outliers only; None while too few are known.

    `norms`: float64 [n], gradient norms before clipping, oldest first; non-finite ones are left
    out. It is the SUGGESTED_PERCENTILE of the newest NORMS_KEPT. A millisecond at most.
    """
    return _percentile(norms, SUGGESTED_PERCENTILE)


def ordinary_norm(norms: npt.NDArray[np.float64]) -> float | None:
    """The norm that an ordinary step stays below: the ORDINARY_PERCENTILE, by the same rules."""
    return _percentile(norms, ORDINARY_PERCENTILE)


def never_engages(threshold: float, ordinary: float) -> bool:
    """Whether a threshold is so far above the ordinary norm that it would let a spike pass.

    Not for a threshold of NaN, which is one that was not seen.
    """
    return threshold >= NEVER_MARGIN * ordinary


def _percentile(norms: npt.NDArray[np.float64], percentile: int) -> float | None:
    finite = norms[np.isfinite(norms)][-NORMS_KEPT:]
    needed = math.ceil(100 * NORMS_BEYOND / (100 - percentile))
    return float(np.percentile(finite, percentile)) if len(finite) >= needed else None
