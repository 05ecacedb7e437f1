"""What fails today, and why: loop, or loop and plan, to what is wrong. Empty is the aim.

Who mends a loop takes it off its list: the tests of these fail when they pass.
"""

from __future__ import annotations

RECORDS: dict[str, str] = {
    # product
    **dict.fromkeys(
        (
            "2 optimizers, norm, fp32, three",
            "2 optimizers, norm, bf16, one",
            "2 optimizers, norm, overflow, ragged",
            "2 optimizers, value, fp32, one",
            "2 optimizers, value, bf16, ragged",
            "2 optimizers, value, overflow, three",
            "2 optimizers, per parameter, fp32, ragged",
            "2 optimizers, per parameter, bf16, three",
            "2 optimizers, per parameter, overflow, one",
            "2 optimizers, per group, fp32, three",
            "2 optimizers, per group, bf16, one",
            "2 optimizers, per group, overflow, ragged",
            "2 optimizers, by hand, fp32, one",
            "2 optimizers, by hand, bf16, ragged",
            "2 optimizers, by hand, overflow, three",
            "3 optimizers, norm, fp32, one",
            "3 optimizers, norm, bf16, ragged",
            "3 optimizers, norm, overflow, three",
            "3 optimizers, value, fp32, ragged",
            "3 optimizers, value, bf16, three",
            "3 optimizers, value, overflow, one",
            "3 optimizers, per parameter, fp32, three",
            "3 optimizers, per parameter, bf16, one",
            "3 optimizers, per parameter, overflow, ragged",
            "3 optimizers, per group, fp32, one",
            "3 optimizers, per group, bf16, ragged",
            "3 optimizers, per group, overflow, three",
            "3 optimizers, by hand, fp32, ragged",
            "3 optimizers, by hand, bf16, three",
            "3 optimizers, by hand, overflow, one",
        ),
        "optimizers after the first are read once more, after the clip: 0.825 instead of 0.892",
    ),
    # ordinary
    "divisor_told": (
        "step 0: losses (0.183, 0.648) instead of (0.367, 1.297): trace.divide is not there"
    ),
    # amp
    "own_scaler": (
        "step 0: losses (668.190,) instead of (0.652,): a scaler's own scale and unscale_ go unseen"
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
    "clipped_to_infinity": "a finding judges a measurement as clipping that changes nothing",
    "scaled_by_hand": (
        "step 0: grad_norm 1404.490 instead of 1.371: a rescaling is taken for clipping"
    ),
    "clipped_through_data": (
        "step 10: grad_norm 0.378 instead of 1.903: read after the clip, which changes no version"
    ),
    # backwards
    "create_graph": (
        "step 0: grad_norm 2.390 instead of 2.865: a gradient that was freed and one at "
        "its address are taken for the same"
    ),
    "weighted_losses": "step 0: losses (20.634,) instead of (0.254,): the weights are not applied",
    "loss_of_shape_1": "step 0: losses () instead of (0.694,): only 0-dim losses are known",
    "weighted_loss": "step 0: losses (0.694,) instead of (0.173,): the weight is not applied",
    # surrogates
    "gradient_edge": "AttributeError: 'GradientEdge' object has no attribute 'dim'",
    "vector_backward": "no loss, and no note says why",
    "gradients_assigned": "no loss, and no note says why",
    "gradcache": "loss -0.457 of the surrogates instead of 1.243, or None and a note",
    "gradcache_logged": "step 0: loss -0.457 instead of 1.243: the logged loss is not the step's",
    "surgery_mean": (
        "step 5: grad_norm 2.829 instead of 2.686: the mean, smaller than the last task's"
        " own gradients, is taken for clipping"
    ),
    # dropped
    "skipped_before_forward": (
        "step 1: batches [(0, 1, (4, 5, 6, 7)), (0, 2, (8, 9, 10, 11))] instead of [(0, "
        "2, (8, 9, 10, 11))]: a delivered batch enters the step that is open"
    ),
    "skipped_after_forward": (
        "step 1: batches [(0, 1, (4, 5, 6, 7)), (0, 2, (8, 9, 10, 11))] instead of [(0, "
        "2, (8, 9, 10, 11))]: the batch of a forward without a backward stays in the step"
    ),
    "nan_batch": (
        "step 25: losses (nan, 1.571) instead of (1.571,): gradients that were thrown "
        "away stay in the next step"
    ),
    "outliers": (
        "step 6: losses (30.610, 83.662, 0.700) instead of (0.700,): gradients that were "
        "thrown away stay in the next step"
    ),
    "leftovers": (
        "step 3: losses (0.806, 0.169, 0.305, 0.216, 0.486) instead of (0.305, 0.216, "
        "0.486): gradients that were thrown away stay in the next step"
    ),
    "evaluation_between": "step 0: the batches of the evaluation are in the step",
    "accuracy_pass": "step 5: the batches of the pass without gradients are in the next step",
    "careless_evaluation": "step 5: the batches of the evaluation are in the next step",
    "peeked": (
        "step 0: batches [(0, 0, (0, 1, 2, 3)), (1, 0, (0, 1, 2, 3))] instead of [(-, 0, "
        "(0, 1, 2, 3))]: the batch that was looked at is in the first step"
    ),
    "fisher": (
        "step 16: losses (43.312, 30.991, 33.248, 29.387, 0.401, 63.731, 0.583) instead "
        "of (0.583,): gradients that were thrown away stay in the next step"
    ),
    "attack": (
        "step 0: losses (0.652, 0.739, 0.829) instead of (0.829,): gradients that were "
        "thrown away stay in the next step"
    ),
    # failing
    "caught": (
        "step 3: batches [(0, 3, (12, 13, 14, 15)), (0, 4, (16, 17, 18, 19))] instead of "
        "[(0, 4, (16, 17, 18, 19))]: the batch whose forward failed stays in the step"
    ),
    "caught_in_backward": (
        "step 3: batches [(0, 3, (12, 13, 14, 15)), (0, 4, (16, 17, 18, 19))] instead of "
        "[(0, 4, (16, 17, 18, 19))]: the batch whose backward failed stays in the step"
    ),
    "caught_in_step": (
        "step 3: losses (0.226, 0.435) instead of (0.435,): a step that raised counts as "
        "none, its loss and batch stay"
    ),
    # adversarial
    "gan": (
        "step 0: grad_norm 1.598 instead of 0.758: the critic's rows are those that the "
        "generator's backward left in it"
    ),
    "gan_toggled": "11 records of 10 steps: the first round is two steps",
    "wgan_gp": (
        "step 0: grad_norm 13.836 instead of 14.133: the critic's rows are those that the"
        " generator's backward left in it"
    ),
    "wgan_gp_three_rounds": "step 2: the first round is taken apart, later ones are not",
    "critic_alone": (
        "step 1: losses (0.221, 0.127) instead of (0.127,): a backward whose gradients "
        "nobody used stays in the next step"
    ),
    "actor_critic": (
        "step 0: grad_norm 1.933 instead of 0.831: the critic's rows are those that the "
        "actor's backward left in it"
    ),
    "policy_and_value": (
        "17 records of 21 steps: the last step of the policy and the first of the value are one"
    ),
    "policy_stopped_early": (
        "14 records of 18 steps: the last step of the policy and the first of the value are one"
    ),
    "in_turns": (
        "step 0: grad_norm 1.008 instead of 0.879: gradients that were not used are in the norm"
    ),
    "explicit_border": "20 records of 10 steps: step_after is not there",
    # stepping
    "sam": "step 0: losses (0.652, 0.732) instead of (0.732,): the first gradients' loss stays",
    "sam_clipped": (
        "step 0: losses (0.652, 0.732) instead of (0.732,): the first gradients' loss and clip stay"
    ),
    "sam_with_closure": (
        "step 0: losses (0.652, 0.732) instead of (0.732,): the first gradients' loss stays"
    ),
    "lbfgs": "step 0: clip before 0.371 instead of 0.192: the clip of the first evaluation stays",
    "muon_and_adamw": (
        "step 0: grad_norm 1.343 instead of 1.371: optimizers after the first are read "
        "once more, after the clip"
    ),
    "in_backward_beside_dense": (
        "13 records of 12 steps: the optimizers inside and outside of the backward are "
        "steps of their own"
    ),
    # byhand
    "zeroth_order": "0 records of 12 steps: trace.step() does nothing without a backward",
    "evolution": "0 records of 12 steps: trace.step() does nothing without a backward",
    "functional": "0 records of 12 steps: trace.step() does nothing without a backward",
    # replaced
    "densified": (
        "step 8: losses () instead of (4.295,): replaced parameters are looked for only "
        "when a group's size changes"
    ),
    "head_swapped": "step 8: grad_norm 1.171 instead of 0.495: old and new head stand side by side",
    "lora_switched": (
        "step 8: losses () instead of (0.480,): old and new adapter stand side by side"
    ),
    "vocabulary_grown": (
        "step 8: losses () instead of (0.581,): the new embedding is found too late"
    ),
    "recreated": "step 8: losses () instead of (0.005,): the old parameters are kept",
    "pruned": (
        "step 8: grad_norm 0.446 instead of 0.363: the layer that was taken out is still counted"
    ),
    "data_grown / cpu": (
        "RuntimeError: the copy from before the update has 8 rows, the parameter 13"
    ),
    "averaged": "step 6: the batches of update_bn are in the next step",
    # loaders
    "nobody_told": (
        "step 0: batches [] instead of [(0, 0, (10, 22, 12, 8))]: only a given loader is watched"
    ),
    "watched_and_given": (
        "step 0: batches [(0, 0, (10, 22, 12, 8)), (1, 0, (10, 22, 12, 8))] instead of "
        "[(0, 0, (10, 22, 12, 8))]: two ways in, two batches"
    ),
    "broken_off": (
        "step 4: batches [(0, 4, (9, 25, 13, 38)), (1, 0, (1, 23, 2, 4))] instead of [(1,"
        " 0, (1, 23, 2, 4))]: the batch at the break stays"
    ),
    "one_ahead": (
        "step 0: batches [(0, 0, (10, 22, 12, 8)), (0, 1, (14, 5, 19, 13))] instead of "
        "[(0, 0, (10, 22, 12, 8))]: a delivered batch enters the step that is open"
    ),
    "one_ahead_untold": (
        "step 0: batches [] instead of [(0, 0, (0, 1, 2, 3))]: only a given loader is watched"
    ),
    "in_a_thread": (
        "step 0: batches [(0, 0, (0, 1, 2, 3)), (0, 1, (4, 5, 6, 7)), (0, 2, (8, 9, 1... "
        "instead of [(0, 0, (0, 1, 2, 3))]: batches are those that another thread drew "
        "meanwhile"
    ),
    "workers_watched": (
        "step 6: batches [(1, 0, None)] instead of [(1, 0, (0, 1, 2, 3))]: the workers "
        "outlive the watching of an epoch"
    ),
    "resumable": (
        "step 0: also the three batches that the loader skips, and its own iterator is replaced"
    ),
    "skipped_first": (
        "step 0: batches [(0, 0, (0, 1, 2, 3)), (0, 1, (4, 5, 6, 7)), (0, 2, (8, 9, 1... "
        "instead of [(0, 5, (20, 21, 22, 23))]: batches that were drawn and dropped are "
        "in the first step"
    ),
    "batches_as_tensors": (
        "step 0: batches [(0, 0, ('tensor([20,  5,  3, 12])',))] instead of [(0, 0, (20, "
        "5, 3, 12))]"
    ),
    "batches_as_arrays": (
        "step 0: batches [(0, 0, ('[20  5  3 12]',))] instead of [(0, 0, (20, 5, 3, 12))]"
    ),
    "batches_as_ranges": (
        "step 0: batches [(0, 0, ('range(0, 4)',))] instead of [(0, 0, (0, 1, 2, 3))]"
    ),
    # beside
    "taken_by_hand": (
        "step 0: batches [(0, 0, (0, 1, 2, 3)), (0, 1, (4, 5, 6, 7)), (0, 2, (8, 9, 1... "
        "instead of [(10, 100, (0, 1, 2, 3))]: trace.take is not there"
    ),
    "copied": "step 5: the batches of a copy are those of the loader, with the loader's data",
    "pickled_inside": (
        "AttributeError: Can't pickle local object '_wrap.<locals>.wrap.<locals>._get_iterator'"
    ),
    # others
    "step_compiled": "no note says that the whole step is compiled",
    "compiled": "no note says that activations are inside a compiled wrapper",
}
"""Loops whose records do not tell the truth: the first difference, and its cause."""

NEUTRALITY: dict[str, str] = {
    # loaders
    "mapped": "the loader's own _get_iterator is not called: its batches are not mapped",
    "resumable": "the loader's own _get_iterator is not called: it does not know where it is",
    # beside
    "copied": "a copy of the loader serves the batches of the loader, and draws from its generator",
    "pickled_inside": (
        "AttributeError: Can't pickle local object '_wrap.<locals>.wrap.<locals>._get_iterator'"
    ),
    # others
    "compiled / accelerator": (
        "fail_on_recompile: the forward hook comes and goes, which a guard of the compiler sees"
    ),
}
"""Loops that a trace changes."""

RESTORED: dict[str, str] = {
    # loaders
    "workers": "attributes of the tap stay on the iterator of the persistent workers",
    "workers_watched": "attributes of the tap stay on the iterator of the persistent workers",
    # beside
    "copied": "the copy of a loader keeps the tap's _get_iterator",
    "pickled_inside": (
        "AttributeError: Can't pickle local object '_wrap.<locals>.wrap.<locals>._get_iterator'"
    ),
    # tensors
    "leaf_output": "15 hooks are left on a parameter that a module returned",
}
"""Loops after which something is left behind."""

KEPT: dict[str, str] = {
    # product
    **dict.fromkeys(
        (
            "1 optimizer, no clipping, overflow, three",
            "1 optimizer, norm, overflow, one",
            "1 optimizer, value, overflow, ragged",
            "1 optimizer, per parameter, overflow, three",
            "1 optimizer, per group, overflow, one",
            "1 optimizer, by hand, overflow, ragged",
            "2 optimizers, no clipping, overflow, one",
            "2 optimizers, norm, overflow, ragged",
            "2 optimizers, value, overflow, three",
            "2 optimizers, per parameter, overflow, one",
            "2 optimizers, per group, overflow, ragged",
            "2 optimizers, by hand, overflow, three",
            "3 optimizers, no clipping, overflow, ragged",
            "3 optimizers, norm, overflow, three",
            "3 optimizers, value, overflow, one",
            "3 optimizers, per parameter, overflow, ragged",
            "3 optimizers, per group, overflow, three",
            "3 optimizers, by hand, overflow, one",
        ),
        "the scaler lives as long as the closed trace",
    ),
    # amp
    **dict.fromkeys(
        (
            "fused_overflow",
            "unscaled_one_of_two",
        ),
        "the scaler lives as long as the closed trace",
    ),
    # replaced
    **dict.fromkeys(
        (
            "densified",
            "head_swapped",
            "lora_switched",
            "vocabulary_grown",
            "recreated",
            "pruned",
        ),
        "replaced parameters live as long as the trace",
    ),
    # loaders
    "workers": "the loader is part of a cycle: its workers end five seconds late",
    "workers_watched": "the loader is part of a cycle: its workers end five seconds late",
    # beside
    "pickled_inside": (
        "AttributeError: Can't pickle local object '_wrap.<locals>.wrap.<locals>._get_iterator'"
    ),
}
"""Loops of which a trace keeps alive what it should not."""
