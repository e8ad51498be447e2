"""The strictest settings that JAX has: rank promotion raises, warnings are errors."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import jax
import pytest


def known_to_xla(flag: str) -> str:
    """The flag, or nothing where this release of XLA ends at once because it has no such flag."""
    ends = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": flag},
        capture_output=True,
    )
    return "" if ends.returncode else flag


# One cache of compiled programs for all workers and for the processes that tests start.
OWN = "JAX_COMPILATION_CACHE_DIR" not in os.environ  # made here, and removed at the end
if OWN:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="crest_jax_compiled_")
COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"]
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# What is compiled for seconds runs for milliseconds here; ``--slow`` compiles as users do.
if OWN and "--slow" not in sys.argv:  # workers and other processes inherit it
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + known_to_xla(
        " --xla_cpu_use_fusion_emitters=false"  # compiles in half the time
    )
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
    jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_numpy_rank_promotion", "raise")


collect_ignore = ["make_tiny_encoders.py"]  # needs torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: some tests wait for processes that they start."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_unconfigure(config: pytest.Config) -> None:
    if OWN:
        shutil.rmtree(COMPILED, ignore_errors=True)


SLOW_NOTEBOOKS = {
    "01_quickstart.ipynb",
    "02_watch_the_region.ipynb",
    "03_what_is_picked.ipynb",
    "04_language.ipynb",  # needs `pip install --no-deps`, as it says
}


SLOW_FILES = {
    "test_devices.py",  # many processes, as the next two
    "test_report_page.py",
    "test_cost_model.py",
    "test_checkpoints.py",
}
SLOW_CASES = {  # of tests whose other cases are quick
    "test_sizes_of_numbers_change_no_pick": {"partitioned", "lazy"},
    "test_a_setting_of_the_paper_takes_two_steps_on_stand_in_arrays": {"cifar10_resnet20"},
    "test_a_run_cut_off_anywhere_resumes_bit_for_bit": {
        "random",
        "top_loss",
        "dynamic_pruning",
        "craig",
    },
    "test_class_blocks_and_all_pairs_agree": {
        "euclidean-sizes0-32",
        "euclidean-sizes1-32",
        "sqeuclidean-sizes2-64",
        "cosine-sizes2-64",
        "exponential-sizes0-32",
        "sqeuclidean-sizes0-32",
        "cosine-sizes0-32",
        "exponential-sizes1-32",
        "cosine-sizes1-32",
        "sqeuclidean-sizes1-32",
        "sqeuclidean-sizes3-64",
        "cosine-sizes3-64",
        "euclidean-sizes2-64",
    },
    "test_nothing_compiles_after_the_first_region": {"signed-probe", "none-probe"},
    "test_the_observations_of_every_window_are_remembered_and_not_many_more": {
        "3.0-0.01-1e-06",
        "1.0-0.01-1e-06",
    },
    "test_the_compiled_program_keeps_to_the_budget": {"9000-40-32", "3000-8-8"},
    "test_lists_change_no_pick": {"late", "early"},
    "test_learned_examples_kept_fall_short_by_what_is_documented": {"16-0.3"},
    "test_a_share_of_products_is_reached_by_the_same_picks_of_both_methods": {"labels1", "None"},
    "test_regions_of_parameters_that_stay_have_one_length": {"none", "paper"},
    "test_usual_gains_are_left_as_they_are": {"rbf", "exponential"},
    "test_learned_and_other_examples_weigh_alike_however_short_the_windows": {
        "0.05-4-0.0-4",
        "0.5-4-0.25-4",
        "0.5-20-0.25-4",
        "0.5-4-0.25-None",
    },
    "test_the_quadratic_model_is_gradient_and_hessian_diagonal_of_its_examples": {"coresets"},
    "test_the_check_compares_the_model_with_the_loss_at_the_parameters_now": {"diagonal"},
    "test_an_example_learns": {"equinox_loop", "nnx_loop", "linen_loop", "scanned_loop"},
    "test_many_steps_in_one_program_are_the_steps_one_by_one": {
        "crest_fresh_medoids",
        "fixed",
        "gradmatch",
        "gradmatch_batch",
        "glister",
        "score_pruning",
        "stratified",
    },
    "test_several_mini_batches_are_those_that_come_one_by_one": {
        "crest_fresh_medoids",
        "gradmatch_batch",
        "glister",
        "score_pruning",
    },
    "test_every_pick_has_the_largest_gain": {"2000-10"},
    "test_it_agrees_with_lazy_greedy_in_every_metric": {"cosine"},
    "test_methods_do_the_same_in_every_mode": {
        "64 bits-crest",
        "64 bits-crest_paper",
        "64 bits-gradmatch",
        "64 bits-top_loss",
        "strict-crest",
        "strict-dynamic_pruning",
    },
    "test_selection_works_in_the_modes_of_jax": {
        "jax_enable_x64-lazy",
        "jax_enable_x64-dense",
        "jax_enable_x64-medoids",
    },
    "test_other_metrics_are_exact_too": {"lazy-cosine", "lazy-sqeuclidean", "lazy-exponential"},
    "test_quotas_can_be_equal_or_given": {"lazy"},
    "test_given_similarities_are_read_as_they_are": {"lazy", "stochastic"},
    "test_one_number_of_any_kind_is_an_accuracy": {"0.75", "value5", "value4", "value3", "1"},
    "test_a_file_gives_the_very_training_that_arrays_give": {
        "crest",
        "dynamic_pruning",
        "fixed",
    },
    "test_a_scrambled_order_is_a_permutation_and_differs_by_its_seed": {
        "2",
        "4",
        "5",
        "7",
        "8",
        "9",
        "11",
        "12",
        "16",
    },
    "test_every_tensor_is_used_once_or_named": {"bert", "roberta"},
    "test_ties_go_to_the_lowest_row": {"lazy"},
    "crest_jax.diagnostics.worth.pilot": {""},
    "crest_jax.coresets.stream.select_coreset_stream": {""},
    "test_the_anchor_outlives_steps_that_donate_the_model": {"view"},
    "test_a_problem_of_each_form": {"dot", "rectangular", "neighbors dot"},
    "test_products_with_rows_of_elsewhere": {"both"},
    "test_a_problem_of_each_kind": {
        "candidates",
        "coverage",
        "others",
        "initial",
        "earlier",
        "costs",
    },
    "test_picks_of_classes_that_weigh_nothing_share_the_total_alike": {
        "partitioned",
        "lazy",
        "graph",
        "stochastic",
    },
    "test_narrow_floats_are_computed_in_float32": {"lazy"},
    "test_a_sketch_is_the_same_on_an_accelerator_and_cut_to_its_memory": {""},
    "test_a_given_matrix_takes_candidates_and_first_picks": {""},
    "test_the_share_covered_is_1_only_with_every_row": {""},
    "test_rows_of_a_table_are_classified_by_the_names_of_its_columns": {""},
    "test_a_run_on_digits_takes_pixels_of_its_own_range": {""},
    "test_numbers_far_from_the_origin_keep_their_correlation": {""},
    "test_entries_are_summed_where_given_twice_and_the_matrix_is_left_alone": {""},
    "test_the_graph_holds_the_nearest_rows_even_where_many_are_alike": {"normal"},
    "test_states_are_taken_in_the_forms_that_people_use_and_come_back_so": {"Full"},
    "test_last_layer_gradients_are_those_of_the_last_layers_parameters": {""},
    "test_gradients_and_curvature_pass_through": {"linen-False", "nnx-True"},
    "test_hundreds_of_random_problems_with_duplicates": {"lazy"},
    "test_missing_misshapen_and_truncated_weights_are_named": {"bert"},
    "test_picks_of_a_size_are_the_first_of_any_larger_size": {"lazy"},
    "test_other_metrics_make_the_greedy_choice": {"dot-lazy"},
    "test_similarities_may_be_asymmetric_or_rectangular": {"shape0-dense", "shape1-lazy"},
    "test_embeddings_are_the_gradients_of_the_last_layer": {"tokens", "segmentation", "masked tokens"},
    "test_no_kind_of_run_imports_what_another_needs": {""},
    "test_texts_are_classified": {""},
    "test_a_resumed_run_notices_that_its_images_changed": {""},
    "test_per_example_gradients_average_to_the_gradient": {"linen", "nnx"},
    "test_every_setting_reaches_the_choice": {""},
    "test_ours_is_timed_from_embeddings_to_picks": {""},
    "test_ours_chooses_from_a_graph_and_from_its_own": {""},
    "test_any_problem": {""},
    "test_a_last_part_smaller_than_the_size_is_kept_whole": {""},
    "test_a_state_asked_twice_gives_arrays_of_their_own": {""},
    "test_skipping_gives_up_after_five_bad_steps_in_a_row": {""},
    "test_sources_losses_and_embeddings_have_their_types_in_every_mode": {"64 bits", "strict"},
    "test_whole_numbers_of_any_size_are_exact": {""},
    "test_sketched_gradients_are_the_sketch_of_the_true_gradients": {"65536"},
    "test_batches_are_whole_and_weighted": {"crest_half", "crest_fresh_medoids"},
    "test_large_products_are_sketched_without_bias_and_as_closely_as_promised": {""},
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        name, _, case = item.name.partition("[")
        slow_file = item.path.name in SLOW_FILES | SLOW_NOTEBOOKS
        if slow_file or case.rstrip("]") in SLOW_CASES.get(name, ()):
            item.add_marker(pytest.mark.slow)
    if config.getoption("--slow"):
        return
    slow = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(slow)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs() -> Iterator[None]:
    """Free the compiled programs of a module: those of all together exhaust a process's memory maps."""
    yield
    jax.clear_caches()
