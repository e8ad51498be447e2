"""What is said while runs go on and at their end claims no more than is known."""

import math

import pytest

from experiments import train
from experiments.harness.conclusion import in_words
from experiments.harness.timing import PhaseTimer


def runs(method, accuracies, seconds, budget=0.1):
    return [
        {
            "method": method, "seed": seed, "budget": budget, "steps": 308, "test_accuracy": accuracy,
            "training_seconds": seconds,
        }
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip


STRATIFIED = runs("stratified", (0.80, 0.81, 0.82), 2.0)


def test_a_lead_that_all_seeds_have_is_clear():
    lines = in_words(STRATIFIED + runs("crest", (0.82, 0.83, 0.841), 3.0))
    assert lines[0] == "Most accurate after 308 steps: crest, 83.03 ± 2.61 %."
    assert "2.03 points ahead of stratified" in lines[1]
    assert "95 % interval 1.89 to 2.18 (3 seeds): clearly ahead." in lines[1]
    assert lines[2] == "Time: 3.0 s a run, stratified batches 2.0 s (1.50 times as long)."


def test_a_lead_that_seeds_do_not_agree_on_is_not():
    lines = in_words(STRATIFIED + runs("crest", (0.83, 0.80, 0.83), 3.0))
    assert lines[1].endswith("(3 seeds): these seeds do not show which is better.")


def test_one_seed_shows_nothing():
    lines = in_words(STRATIFIED[:1] + runs("crest", (0.9,), 3.0))
    assert lines[1].endswith("one seed does not show which is better: pass --seeds 0 1 2 3 4.")


def test_a_best_baseline_is_held_against_the_best_of_the_others():
    lines = in_words(
        STRATIFIED + runs("random", (0.7, 0.7, 0.7), 2.0) + runs("crest", (0.75, 0.76, 0.77), 3.0)
    )
    assert lines[0].startswith("Most accurate after 308 steps: stratified")
    assert "5.00 points ahead of crest" in lines[1]


def test_random_is_the_baseline_where_no_batch_is_stratified():
    lines = in_words(runs("random", (0.7, 0.71), 2.0) + runs("crest", (0.75, 0.76), 3.0))
    assert "5.00 points ahead of random" in lines[1]


@pytest.mark.parametrize("added", [[], runs("full", (0.99, 0.99, 0.99), 20.0, budget=1.0)])
def test_full_training_and_smaller_budgets_are_no_rivals(added):
    lines = in_words(STRATIFIED + runs("crest", (0.95, 0.95, 0.95), 1.0, budget=0.05) + added)
    assert lines == ["Most accurate after 308 steps: stratified, 81.00 ± 2.48 %."]


def test_full_training_alone_has_no_rival():
    assert in_words(runs("full", (0.99,), 20.0, budget=1.0)) == []


def test_runs_without_a_common_seed_are_not_compared():
    crest = [run | {"seed": run["seed"] + 9} for run in runs("crest", (0.9, 0.9), 3.0)]
    assert in_words(STRATIFIED + crest)[1] == (
        "crest and stratified have no seed in common, so their difference is not known."
    )


def test_the_bar_tells_an_accuracy_once_there_is_one():
    timer = PhaseTimer()
    assert train._postfix(0.5, math.nan, object(), timer) == "loss 0.500"
    assert train._postfix(0.5, 0.8, object(), timer) == "loss 0.500 accuracy 80.0 %"
