import relict_lightning.functional


def test_the_public_functions_are_these():
    assert set(relict_lightning.functional.__all__) == {
        "align_translation",
        "attainable_memorization_p_value",
        "balanced_accuracy_at_optimal_threshold",
        "benjamini_hochberg",
        "clopper_pearson_interval",
        "closer_to_training_share",
        "conformal_p_value",
        "copy_likeness",
        "cosine_similarity",
        "ct_score",
        "dice",
        "estimate_rate",
        "mean_absolute_error",
        "mean_dice",
        "memorization_p_value",
        "minimum_discoveries",
        "mirror",
        "neighbor_ratio",
        "neighbor_ratio_fraction",
        "normalized_cross_correlation",
        "out_of_sample_balanced_accuracy",
        "phase_correlation_shift",
        "replica_rate",
        "root_mean_squared_error",
        "shift",
        "simes_p_value",
        "structural_similarity",
        "tail_p_value",
    }


def test_every_public_function_has_an_example_and_says_what_it_takes_and_returns():
    for name in relict_lightning.functional.__all__:
        documentation = getattr(relict_lightning.functional, name).__doc__
        for section in ("Args:", "Returns:", "Raises:", "Example:"):
            assert section in documentation, f"{name} lacks {section}"
