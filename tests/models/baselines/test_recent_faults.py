"""Faults planted in AnomalyDINO, Dinomaly, INP-Former, PUAD and the way to anomalib, each caught by a quick test.

A slow test: one process per fault. A new fault is one entry in FAULTS.
"""

from __future__ import annotations

import pytest

from tests.planted import Fault, caught

DINO, VIT, PUAD, GENERIC = (
    f"tests/models/baselines/test_{name}.py::test_" for name in ("anomalydino", "vit_reconstruction", "puad", "generic")
)
BASELINES = "models/baselines"

FAULTS = [
    Fault("models/vit.py", "(cells + 0.1) / side", "cells / side",
          f"{DINO}position_embeddings_are_dinov2s_and_not_antialiased"),
    Fault("models/vit.py", "net.cls_token if net.no_embed_class else net.cls_token + first", "net.cls_token",
          f"{DINO}tokens_equal_timms_own_where_nothing_is_resized"),
    Fault(f"{BASELINES}/anomalydino.py", ".square() / 2", "", f"{DINO}distance_score_and_map_of_a_hand_made_bank"),
    Fault(f"{BASELINES}/anomalydino.py", "self.context.seed * self.config.shots, self.config.shots",
          "0, self.config.shots", f"{DINO}rotations_shots_and_seeds_make_the_bank"),
    Fault(f"{BASELINES}/anomalydino.py", "<= mask[rows, columns].size * 0.35", "< 0",
          f"{DINO}foreground_is_the_first_component_with_its_sign_and_closed_holes"),
    Fault(f"{BASELINES}/dinomaly.py", "nn.functional.elu(q) + 1, nn.functional.elu(k) + 1", "q.exp(), k.exp()",
          f"{VIT}linear_attention_is_the_quadratic_one_with_elu_plus_one"),
    Fault(f"{BASELINES}/dinomaly.py", "torch.where(distance < limit,", "torch.where(distance > limit,",
          f"{VIT}dinomaly_cuts_the_gradient_of_the_easiest_points"),
    Fault(f"{BASELINES}/dinomaly.py", "3 * channels)", "3 * channels, bias=False)", f"{VIT}sizes_are_the_authors"),
    Fault(f"{BASELINES}/vit_reconstruction.py", "outputs = outputs[::-1]", "outputs = outputs",
          f"{VIT}map_and_score_by_hand"),
    Fault(f"{BASELINES}/vit_reconstruction.py", "F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)",
          "F.cosine_similarity(a, b, dim=-1)", f"{VIT}loss_is_of_whole_pictures_and_gradients_are_weighted_by_point"),
    Fault(f"{BASELINES}/vit_reconstruction.py", "align_corners=True", "align_corners=False",
          f"{VIT}map_and_score_by_hand"),
    Fault(f"{BASELINES}/vit_reconstruction.py", "if step >= total:", "if step > 2 * total:",
          f"{VIT}steps_beyond_the_last_change_nothing"),
    Fault(f"{BASELINES}/inp_former.py", "x = x + y if self.shortcut else y", "x = x + y",
          f"{VIT}nothing_passes_the_prototypes_by"),
    Fault(f"{BASELINES}/inp_former.py", ".min(2)[0].mean()", ".mean()",
          f"{VIT}the_prototypes_loss_is_the_distance_to_the_nearest"),
    Fault(f"{BASELINES}/inp_former.py", "* self.scale).relu()", "* self.scale).softmax(-1)",
          f"{VIT}cosine_attention_by_hand"),
    Fault(f"{BASELINES}/puad.py", "[:, :CHANNELS]", "[:, CHANNELS:]",
          f"{PUAD}distance_is_mahalanobis_to_the_training_pictures"),
    Fault(f"{BASELINES}/puad.py", ".clamp_min(0).sqrt()", "",
          f"{PUAD}distance_is_mahalanobis_to_the_training_pictures"),
    Fault(f"{BASELINES}/puad.py", "/ deviation + (distance", "/ deviation - (distance",
          f"{PUAD}scores_are_on_one_scale_over_the_validation_pictures"),
    Fault(f"{BASELINES}/anomalib_mends.py", "module.configure_optimizers = by_step", "pass",
          f"{GENERIC}the_learning_rate_of_dinomaly_moves_every_step"),
    Fault(f"{BASELINES}/anomalib_mends.py", "vit.resample_abs_pos_embed = before", "pass",
          f"{GENERIC}timm_is_left_as_it_was"),
    Fault(f"{BASELINES}/anomalib_config.py", "ours is None or ours < own", "False",
          f"{GENERIC}a_cut_schedule_is_short_and_a_whole_one_is_not"),
    Fault("models/loading.py", "if reading.get():", "if True:",
          f"{GENERIC}loading_outside_of_the_store_is_refused_by_name"),
    Fault("models/loading.py", "raise WeightsError(holes[id(tensor)][1])", "pass",
          f"{GENERIC}a_partial_file_is_taken_where_the_network_needs_no_more"),
    Fault("benchmarks/runner.py", '("other_weights", any(', '("other_weights", not any(',
          "tests/benchmarks/test_run.py::test_substitute_weights_are_named_marked_and_another_record"),
    Fault("benchmarks/units.py", "if self.weights_for:", "if False:",
          "tests/benchmarks/test_run.py::test_substitute_weights_are_named_marked_and_another_record"),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_caught(fault: Fault) -> None:
    found, output = caught(fault)
    assert found, f"{fault.test} passes with this fault in {fault.file}:\n{fault.old}\nmade\n{fault.new}\n\n{output}"
