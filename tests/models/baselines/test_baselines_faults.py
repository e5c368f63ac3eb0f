"""Three faults or more per baseline (a joining, a sign or weight of the loss, the rule of map or score), each caught.

A slow test: one process per fault. A new fault is one entry in FAULTS; the test named in it must be quick.
"""

from __future__ import annotations

import pytest

from tests.planted import Fault, caught


def faults(method: str, *entries: tuple[str, str, str], tests: str = "") -> list[Fault]:
    """Of one method: (text in its file, what it becomes, name of the test in its test file, or in that of `tests`)."""
    where = f"tests/models/baselines/test_{tests or method}.py"
    return [Fault(f"models/baselines/{method}.py", old, new, f"{where}::{test}") for old, new, test in entries]


FAULTS = [
    *faults(
        "patchcore",
        ("score, place = patch_scores.max(1)", "score, place = patch_scores.min(1)",
         "test_patchcore_finds_a_square_and_scores_its_largest_patch"),
        ("F.avg_pool2d(features[layer], 3, 1, 1)", "features[layer]",
         "test_presets_without_authors_in_their_name_are_the_papers"),
        ("distances.square() if self.config.squared else distances", "distances",
         "test_preset_authors_is_the_code_of_its_authors"),
        ("self.config.sigma, self.config.border", "self.config.sigma",
         "test_preset_authors_is_the_code_of_its_authors"),
        (".mean(1).argmax()", ".mean(1).argmin()", "test_authors_begin_with_the_patch_farthest_on_average"),
    ),
    *faults(
        "padim",
        ("F.interpolate(m, first.shape[-2:])", 'F.interpolate(m, first.shape[-2:], mode="bilinear")',
         "test_deeper_stages_are_joined_by_their_nearest_value"),
        ("(delta @ self.inverse) * delta", "delta * delta",
         "test_map_is_the_mahalanobis_distance_raised_and_smoothed"),
        ('self.config.sigma, "reflect"', "self.config.sigma",
         "test_map_is_the_mahalanobis_distance_raised_and_smoothed"),
    ),
    *faults(
        "efficientad",
        ("hard = distance >= ", "hard = distance <= ", "test_loss_is_the_papers"),
        ("(penalty, *terms)", "terms", "test_loss_is_the_papers"),
        ('0.05 * (found - q[f"qa_{part}"])', "0.05 * found",
         "test_map_scales_both_parts_and_pads_with_zero_after_that"),
        ("(4, 4, 4, 4)", "(4, 4, 4, 4), value=1.0", "test_map_scales_both_parts_and_pads_with_zero_after_that"),
        ('self.context.extras.get("textures")', "None", "test_efficientad_asks_for_its_teacher_and_its_pictures"),
    ),
    *faults(
        "supersimplenet",
        ("align_corners=True", "align_corners=False", "test_features_are_enlarged_with_aligned_corners"),
        ("(margin - maps).clamp_min(0) * mask", "(margin + maps).clamp_min(0) * mask", "test_loss_is_the_authors"),
        ("focal_loss(scores.sigmoid(), labels, gamma=4.0)", "focal_loss(scores.sigmoid(), 1 - labels, gamma=4.0)",
         "test_loss_is_the_authors"),
        ("<= 0.5", "<= 1.0", "test_half_of_the_masks_are_empty_and_the_others_are_patches"),
        ('4.0, "mirror", cut=3.0', "4.0", "test_map_and_score_come_from_the_heads"),
    ),
    *faults(
        "ast",
        ("/ 2 - log_det", "/ 2 + log_det", "test_likelihood_pulls_the_latent_to_zero_and_stretches"),
        ("(teacher - student).square().mean(1)", "(teacher - student).square().sum(1)",
         "test_distance_of_normal_and_anomalous_positions"),
        ('mode="bicubic"', 'mode="bilinear"', "test_map_is_raised_bicubically_and_the_score_taken_before"),
        ('= "mean"  # over', '= "max"  # over', "test_map_is_raised_bicubically_and_the_score_taken_before"),
    ),
    *faults(
        "draem",
        ("[x, rebuilt] if self.picture_first else [rebuilt, x]", "[x, rebuilt]",
         "test_picture_after_its_reconstruction_in_the_joined_input"),
        ("epsilon=0.0, smooth=1e-5", "alpha=1.0, epsilon=0.0, smooth=1e-5",
         "test_both_kinds_of_pixels_have_a_gradient"),
        ('parts["l2"] + parts["ssim"] + parts["focal"]', 'parts["l2"] - parts["ssim"] + parts["focal"]',
         "test_loss_is_the_authors"),
        ("F.avg_pool2d(maps, side, 1, side // 2)", "maps",
         "test_score_is_the_largest_mean_of_the_softmax_map"),
        ("probability=0.5", "probability=1.0", "test_half_of_the_training_pictures_are_defective"),
        ("else ((0.8, 0.9), 0.2)", "else ((0.8, 0.9), 0.1)", "test_learning_rate_falls_twice_to_a_fifth"),
    ),
    *faults(
        "reverse_distillation",
        ('128 if name.startswith("wide_") else 64', "64",
         "test_networks_of_the_wide_resnet_have_the_authors_sizes"),
        ("F.cosine_similarity(t.flatten(1), s.flatten(1))", "F.cosine_similarity(t, s)",
         "test_loss_is_one_cosine_per_picture_and_stage"),
        ("align_corners=True", "align_corners=False",
         "test_map_is_the_sum_of_distances_with_aligned_corners_smoothed_as_scipy_does"),
        ('self.config.sigma, "reflect"', "self.config.sigma",
         "test_map_is_the_sum_of_distances_with_aligned_corners_smoothed_as_scipy_does"),
    ),
    *faults(
        "stfpm",
        ("[distance.mean() for distance", "[distance.sum() for distance",
         "test_loss_is_the_mean_squared_distance_of_normalised_features_summed_over_stages"),
        ("learn = torch.tensor(chosen", "learn = torch.tensor(held + chosen",
         "test_held_out_pictures_are_not_trained_on"),
        ("stop=Best(patience=config.epochs)", "stop=None",
         "test_a_fifth_is_held_out_and_the_best_epoch_on_it_is_kept"),
        ("torch.stack(full).prod(0)", "torch.stack(full).sum(0)",
         "test_map_is_the_product_at_the_first_stages_size_upsampled"),
    ),
    *faults(
        "fastflow",
        ("z.square().flatten(1).sum(1) - jacobian", "z.square().flatten(1).sum(1) + jacobian",
         "test_loss_is_the_negative_log_likelihood_and_its_gradient"),
        ("flow(norm(feature))", "flow(feature)", "test_norms_come_before_the_flows"),
        ("torch.stack(full).mean(0)", "torch.stack(full).prod(0)",
         "test_map_is_minus_the_mean_likelihood_over_stages"),
    ),
    *faults(
        "csflow",
        ("flat.square().sum() - jacobian", "flat.square().sum() + jacobian",
         "test_loss_is_the_likelihood_with_each_pictures_own_log_determinant"),
        ("permute(flow, context.device)", "pass", "test_permutations_are_the_authors"),
        ("z[: self.config.scales]", "z", "test_map_is_that_of_the_largest_scale_and_score_the_mean_over_all"),
        (".square().mean(1) / 2)", ".square().amax(1) / 2)",
         "test_map_is_that_of_the_largest_scale_and_score_the_mean_over_all"),
    ),
    *faults(
        "ganomaly",
        ('"adversarial": F.mse_loss(of_fake[1], of_real[1])', '"adversarial": F.mse_loss(of_fake[0], of_real[0])',
         "test_generators_losses_are_the_authors"),
        ("zip(config.weights, parts.values(), strict=True)", "zip((1, 1, 1), parts.values(), strict=True)",
         "test_both_players_step_from_one_state_with_the_weights_1_50_1"),
        ("first.padding = (1, 1)", "pass", "test_networks_have_the_authors_sizes_and_shapes"),
        (".square().flatten(1).mean(1))", ".abs().flatten(1).mean(1))",
         "test_score_is_the_mean_squared_distance_of_the_codes"),
    ),
    *faults(
        "uninet",
        ("[half[i] for i in range(2) for half in halves]", "[half[1 - i] for i in range(2) for half in halves]",
         "test_the_student_of_one_teacher_answers_to_the_other"),
        ("(1 - COSINE) * (p + 1e-8).log()", "COSINE * (p + 1e-8).log()", "test_loss_by_hand"),
        ("s @ t.transpose(1, 2)", "t @ s.transpose(1, 2)", "test_loss_by_hand"),
        ('128 if name.startswith("wide_") else 64', "64",
         "test_bottleneck_of_the_wide_resnet_has_the_authors_width"),
        ("align_corners=True", "align_corners=False", "test_map_and_score_by_hand"),
        ("peak[chance > chance.mean()]", "peak", "test_map_and_score_by_hand"),
        ("self.target.net.requires_grad_(True)", "pass", "test_one_teacher_is_trained_and_the_other_is_frozen"),
    ),
    *faults(
        "glass",
        ("moved.add_(STEP * slope", "moved.sub_(STEP * slope", "test_loss_is_the_authors"),
        ("distance.clamp(low, high)", "distance.clamp_max(high)",
         "test_points_are_pushed_into_the_shell_and_not_turned"),
        (".masked_fill(defect > 0, torch.nan)", "", "test_loss_is_the_authors"),
        (".topk(math.ceil(len(defect) / 2))", ".topk(len(defect))", "test_loss_is_the_authors"),
        ("torch.maximum(one, other), torch.where(share > 1 / 3, one * other, one)", "one, one",
         "test_masks_are_one_both_or_either_and_never_empty"),
        ("cells.sigmoid(), self", "cells, self", "test_map_and_score_come_from_the_discriminator"),
        ("mask, visible), mask", "mask, 1 - visible.square()), mask",
         "test_textures_let_20_to_80_percent_of_the_picture_through"),
    ),
    *[Fault(file, old, new, f"tests/models/baselines/test_simplenet.py::{test}") for file, old, new, test in (
        ("models/nn/patches.py", "_average(columns, dimension)", "columns[:, :dimension]",
         "test_patch_features_follow_the_published_procedure"),
        ("models/nn/discriminator.py", "(margin + score_fake)", "(margin - score_fake)", "test_loss_is_the_hinge"),
        ("models/nn/discriminator.py", "F.interpolate(cells", "F.interpolate(-cells",
         "test_map_and_score_are_minus_the_discriminators_output"),
        ("models/baselines/simplenet.py", "patches = -self", "patches = self",
         "test_map_and_score_are_minus_the_discriminators_output"),
    )],
    *faults(
        "anomalydino",
        (".square() / 2", "", "test_distance_score_and_map_of_a_hand_made_bank"),
        ("self.context.seed * self.config.shots, self.config.shots", "0, self.config.shots",
         "test_rotations_shots_and_seeds_make_the_bank"),
        ("<= mask[rows, columns].size * 0.35", "< 0",
         "test_foreground_is_the_first_component_with_its_sign_and_closed_holes"),
    ),
    *faults(
        "dinomaly",
        ("nn.functional.elu(q) + 1, nn.functional.elu(k) + 1", "q.exp(), k.exp()",
         "test_linear_attention_is_the_quadratic_one_with_elu_plus_one"),
        ("torch.where(distance < limit,", "torch.where(distance > limit,",
         "test_dinomaly_cuts_the_gradient_of_the_easiest_points"),
        ("3 * channels)", "3 * channels, bias=False)", "test_sizes_are_the_authors"),
        tests="vit_reconstruction",
    ),
    *faults(
        "vit_reconstruction",
        ("outputs = outputs[::-1]", "outputs = outputs", "test_map_and_score_by_hand"),
        ("F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)", "F.cosine_similarity(a, b, dim=-1)",
         "test_loss_is_of_whole_pictures_and_gradients_are_weighted_by_point"),
        ("align_corners=True", "align_corners=False", "test_map_and_score_by_hand"),
        ("if step >= total:", "if step > 2 * total:", "test_steps_beyond_the_last_change_nothing"),
    ),
    *faults(
        "inp_former",
        ("x = x + y if self.shortcut else y", "x = x + y", "test_nothing_passes_the_prototypes_by"),
        (".min(2)[0].mean()", ".mean()", "test_the_prototypes_loss_is_the_distance_to_the_nearest"),
        ("* self.scale).relu()", "* self.scale).softmax(-1)", "test_cosine_attention_by_hand"),
        tests="vit_reconstruction",
    ),
    *faults(
        "puad",
        ("[:, :CHANNELS]", "[:, CHANNELS:]", "test_distance_is_mahalanobis_to_the_training_pictures"),
        (".clamp_min(0).sqrt()", "", "test_distance_is_mahalanobis_to_the_training_pictures"),
        ("/ deviation + (distance", "/ deviation - (distance",
         "test_scores_are_on_one_scale_over_the_validation_pictures"),
    ),
    *faults(
        "anomalib_mends",
        ("module.configure_optimizers = by_step", "pass", "test_the_learning_rate_of_dinomaly_moves_every_step"),
        ("vit.resample_abs_pos_embed = before", "pass", "test_timm_is_left_as_it_was"),
        tests="generic",
    ),
    *faults(
        "anomalib_config",
        ("ours is None or ours < own", "False", "test_a_cut_schedule_is_short_and_a_whole_one_is_not"),
        tests="generic",
    ),
    *faults(
        "spade",
        ("distances.square() if self.config.squared else distances", "distances",
         "test_the_papers_score_is_the_mean_of_squared_distances"),
        ("self.bank[layer][chosen].flatten(0, 1)", "self.bank[layer].flatten(0, 1)",
         "test_the_map_sees_the_nearest_pictures_only"),
    ),
    *faults("dfr", (
        "align_corners=True)\n        return Prediction", "align_corners=False)\n        return Prediction",
        "test_map_is_the_mean_squared_error_enlarged_with_aligned_corners",
    )),
    *faults("gcpf", ("own = nearest(x, means, whiten)[1]", "pass", "test_clusters_are_told_apart_by_their_shape")),
    *faults("mbpfm", ("[self.config.lr / 10]", "[self.config.lr]", "test_rates_and_settings_are_the_codes")),
    *faults(
        "kdad",
        ("1 - F.cosine_similarity(s, c)", "1 + F.cosine_similarity(s, c)", "test_terms_and_their_gradients_by_hand"),
        ("return Prediction(opened(maps)", "return Prediction(maps",
         "test_map_is_the_losss_gradient_and_the_score_the_loss"),
    ),
    *faults("fcdd", ("torch.where(marked, -(", "torch.where(~marked, -(", "test_loss_and_its_gradient_by_hand")),
    *faults("ae_ssim", (
        "Prediction(total / count", "Prediction(total", "test_map_is_the_papers_and_overlaps_are_averaged",
    )),
    *faults("riad", (
        'self.trained["net"](x * ~part) * part', 'self.trained["net"](x) * part',
        "test_each_set_is_filled_in_from_the_picture_without_it",
    )),
    *faults("vae", (
        "1 - log_variance", "1 + log_variance", "test_bound_is_the_gaussians_log_likelihood_and_divergence",
    )),
    *faults(
        "cnn_dict",
        ("rows[knn(centres, rows)[1][:, 0]]", "centres",
         "test_components_are_those_of_95_percent_and_entries_are_real_descriptors"),
        ("self.config.nearest)[0].mean(1)", "self.config.nearest)[0].sum(1)",
         "test_map_is_the_mean_over_patches_of_the_distance_to_the_dictionary"),
        ("(rows - self.mean) @", "rows @",
         "test_map_is_the_mean_over_patches_of_the_distance_to_the_dictionary"),
    ),
    *faults(
        "f_anogan",
        ("loss = distance + config.penalty * penalty", "loss = distance",
         "test_the_critics_loss_holds_the_penalty"),
        ("critic(fake).mean() - critic(real).mean()", "critic(real).mean() - critic(fake).mean()",
         "test_critic_loss_and_penalty_by_hand"),
        ("real + mix * (fake - real)", "fake", "test_the_penalty_is_taken_between_real_and_fake"),
        ("% config.critic_steps == 0", "% config.critic_steps >= 0",
         "test_the_generator_moves_at_every_last_step_of_the_critic_only"),
        ("self.config.kappa * apart", "apart", "test_score_and_map_are_the_residuals"),
    ),
    *faults(
        "anovit",
        ("[:, encoder.num_prefix_tokens :]", "[:, : -encoder.num_prefix_tokens]", "test_the_class_token_is_left_out"),
        ("align_corners=True", "align_corners=False", "test_tokens_lie_on_their_grid_and_corners_are_aligned"),
        ("Prediction(maps, smooth.flatten(1).amax(1)", "Prediction(maps, None",
         "test_map_and_score_are_of_two_widths_of_the_squared_error"),
        ("x = pictures[learn[indices]]", "x = pictures[indices]", "test_held_out_pictures_are_not_trained_on"),
    ),
    *faults("patch_svdd", (
        "total *= spread_over", "total = total + spread_over", "test_map_is_the_product_of_distances_at_both_sizes",
    )),
    *[Fault(file, old, new, f"tests/{test}") for file, old, new, test in (
        ("models/vit.py", "(cells + 0.1) / side", "cells / side",
         "models/baselines/test_anomalydino.py::test_position_embeddings_are_dinov2s_and_not_antialiased"),
        ("models/vit.py", "net.cls_token if net.no_embed_class else net.cls_token + first", "net.cls_token",
         "models/baselines/test_anomalydino.py::test_tokens_equal_timms_own_where_nothing_is_resized"),
        ("models/loading.py", "if reading.get():", "if True:",
         "models/baselines/test_generic.py::test_loading_outside_of_the_store_is_refused_by_name"),
        ("models/loading.py", "raise WeightsError(holes[id(tensor)][1])", "pass",
         "models/baselines/test_generic.py::test_a_partial_file_is_taken_where_the_network_needs_no_more"),
        ("benchmarks/runner.py", '("untrained", any(value == "untrained" for value in weights.values())),\n', "",
         "benchmarks/test_marks.py::test_untrained_and_substitute_weights_are_marked"),
        ("benchmarks/runner.py", '("other_weights", any(', '("other_weights", not any(',
         "benchmarks/test_marks.py::test_untrained_and_substitute_weights_are_marked"),
        ("benchmarks/units.py", "if self.weights_for:", "if False:",
         "benchmarks/test_run.py::test_substitute_weights_are_named_marked_and_another_record"),
    )],
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_caught(fault: Fault) -> None:
    found, output = caught(fault)
    assert found, f"{fault.test} passes with this fault in {fault.file}:\n{fault.old}\nmade\n{fault.new}\n\n{output}"
