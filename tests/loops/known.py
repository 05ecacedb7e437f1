"""What fails today, and why: loop, or loop and plan, to what is wrong. Empty is the aim.

Who mends a loop takes it off its list: the tests of these fail when they pass.
"""

from __future__ import annotations

RECORDS: dict[str, str] = {
    # ordinary
    "divisor_told": (
        "step 0: losses (0.183, 0.648) instead of (0.367, 1.297): trace.divide is not there"
    ),
    # changed
    "divided_by_tokens": (
        "step 0: grad_norm 6.857 instead of 0.034: a rescaling is taken for clipping"
    ),
    "divided_by_ranks": (
        "step 0: grad_norm 6.857 instead of 0.857: a rescaling is taken for clipping"
    ),
    "noise_added": (
        "step 3: grad_norm 14.346 instead of 14.138: noise that made the gradients "
        "smaller is taken for clipping"
    ),
    "clipped_by_hand_later": (
        "step 12: grad_norm 0.999 instead of 8.852: read after the clip that nobody announced"
    ),
    "scaled_by_hand": (
        "step 0: grad_norm 1404.490 instead of 1.371: a rescaling is taken for clipping"
    ),
    "clipped_through_data": (
        "step 10: grad_norm 0.378 instead of 1.903: read after the clip, which changes no version"
    ),
    # dropped
    "attack_on_inputs": (
        "step 0: losses () instead of (0.739,): a backward that reached only inputs is taken for "
        "another model's, from which the loss may have come; a note says so"
    ),
    # adversarial
    "explicit_border": "30 records of 10 steps: step_after is not there",
    # others
    "step_compiled": "no note says that the whole step is compiled",
    "compiled": "no note says that activations are inside a compiled wrapper",
}
"""Loops whose records do not tell the truth: the first difference, and its cause."""

NEUTRALITY: dict[str, str] = {
    # others
    "compiled / accelerator": (
        "fail_on_recompile: the forward hook comes and goes, which a guard of the compiler sees"
    ),
}
"""Loops that a trace changes."""

RESTORED: dict[str, str] = {}
"""Loops after which something is left behind."""

KEPT: dict[str, str] = {
    # replaced
    "densified": "one replaced parameter of four is still alive a step later",
}
"""Loops of which a trace keeps alive what it should not."""
