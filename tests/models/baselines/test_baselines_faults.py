"""Three faults or more per baseline (a joining, a sign or weight of the loss, the rule of map or score), each caught.

A slow test: one process per fault. A new fault is one entry in FAULTS; the test named in it must be quick.
"""

from __future__ import annotations

import pytest

from tests.planted import Fault, caught


def faults(method: str, *entries: tuple[str, str, str]) -> list[Fault]:
    """Of one method: (text in its file, what it becomes, name of the test in the method's test file)."""
    return [Fault(f"models/baselines/{method}.py", old, new, f"tests/models/baselines/test_{method}.py::{test}")
            for old, new, test in entries]


FAULTS = [
    *faults(
        "patchcore",
        ("score, place = patch_scores.max(1)", "score, place = patch_scores.min(1)",
         "test_patchcore_finds_a_square_and_scores_its_largest_patch"),
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
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_caught(fault: Fault) -> None:
    found, output = caught(fault)
    assert found, f"{fault.test} passes with this fault in {fault.file}:\n{fault.old}\nmade\n{fault.new}\n\n{output}"
