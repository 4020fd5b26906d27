"""Summary of findings: every sentence follows from the numbers."""

from dataclasses import replace

import pytest

from mindllm.evaluation.results import SubjectInfo
from mindllm.report.summary import get_row, summarize_findings
from tests.report.example import (
    UNSURE,
    change_rows,
    make_calibration,
    make_result,
)


def test_above_every_control() -> None:
    first, baselines, subjects, text, evidence, calibration, ceiling, training = summarize_findings(
        make_result()
    )
    assert evidence == (
        "Probabilities by evidence are off by 5.0 points on average (expected calibration error, "
        "95 % interval 2.0 to 9.0) and tell right from wrong (AUROC 0.70, 0.60 to 0.80)."
    )
    assert first.startswith(
        "Identification from fMRI by evidence: the target ranked first among 10 candidates in "
        "60.0 % of 12 trials (95 % interval 55.0 % to 65.0 %; chance 10.0 %), above its controls: "
    )
    assert first.endswith("; p < 0.0005 against each, in these subjects.")
    assert "not above" not in first
    assert baselines.startswith("Beside simpler methods, trained on the same trials: by top 1 (60")
    assert "by 2-way identification (60.0 %) it is above ridge" in baselines
    assert subjects == (
        "Taken one by one, 2 of 2 subjects are above their shuffled trials (p < 0.05, each tested "
        "alone): sub-01 60.0 %, sub-02 60.0 %."
    )
    assert text.startswith("Open-ended generation equals a reference in 60.0 % of trials, above ")
    assert "BLEU-1 is 60.0, above every control" in text
    assert "CIDEr is 600.0, above every control" in text
    assert calibration.startswith("The log-likelihood ratio of a prediction tells right from wrong")
    assert "sub-01 40.0 %" in ceiling
    assert training == (
        "None of the 2 evaluated subjects was seen in training; none of the 12 evaluated stimuli "
        "was."
    )


def test_one_control_that_scores_as_high_is_enough() -> None:
    result = change_rows(make_result(), "zero", p_value=UNSURE, difference_ci_low=-0.1)
    first, _, _, text, *_ = summarize_findings(result)
    assert ": not above its controls. It cannot be called better than zero input (10" in first
    assert "though above " in first
    assert first.endswith("(largest p = 0.4).")
    assert "of trials: not above zero input (10.0 %) (largest p = 0.4)" in text
    assert "BLEU-1 is 60.0, not above zero input (up to 10.0)" in text


def test_baselines_of_equal_skill_are_named() -> None:
    result = change_rows(make_result(), "ridge", p_value=UNSURE)
    assert (
        "not above ridge with the nearest training caption (10.0 %)"
        in (summarize_findings(result)[1])
    )


def test_population_level_and_single_subjects() -> None:
    result = change_rows(make_result(13), "shuffled_trials", group_p_value=0.012)
    sentence = summarize_findings(result)[2]
    assert "13 of 13 subjects" in sentence
    assert "sub-12 60.0 %, and 1 more in the table; at the population level" in sentence
    assert "p = 0.012 (one-sided t test over 13 subjects)" in sentence
    assert not any("Taken one by one" in text for text in summarize_findings(make_result(1)))


def test_text_scores_and_calibration_may_be_missing() -> None:
    result = replace(make_result(), text_scores=[], calibration=make_calibration(ci_low=0.4))
    text, evidence, calibration = summarize_findings(result)[3:6]
    assert "do not tell right from wrong" in evidence
    assert "BLEU" not in text
    assert "does not tell right from wrong" in calibration


def info(in_training: bool | None, chose_checkpoint: bool = False) -> SubjectInfo:
    return SubjectInfo("sub-01", 6, 6, 50, "test", in_training, chose_checkpoint, 0, "")


@pytest.mark.parametrize(
    ("states", "n_seen", "sentence"),
    [
        ([False], 0, "The evaluated subject was not seen in training; none of the 12 evaluated"),
        ([None], None, "Whether these subjects were seen in training is unknown"),
        ([False], None, "Whether the stimuli were seen in training is unknown: the model card"),
        ([False, False], 12, "but all 12 evaluated stimuli were, with other subjects"),
        ([False, False], 12, "identification of seen stimuli in unseen subjects"),
        ([False, True], 3, "1 of 2 evaluated subjects were seen in training, with other trials"),
        ([False, True], 3, "3 of the 12 evaluated stimuli (25.0 %) were seen in training too"),
    ],
)
def test_what_was_seen_in_training(
    states: list[bool | None], n_seen: int | None, sentence: str
) -> None:
    subjects = tuple(map(info, states))
    result = make_result(len(states))
    run = replace(result.run_info, subjects=subjects, n_stimuli_in_training=n_seen)
    result = replace(result, run_info=run)
    assert sentence in summarize_findings(result)[-1]


def test_validation_subjects_are_no_clean_test() -> None:
    result = make_result(1)
    run = replace(result.run_info, subjects=(info(False, chose_checkpoint=True),))
    summary = summarize_findings(replace(result, run_info=run))
    assert "Not a clean test: trials of sub-01 were validation data" in summary[-2]


def test_a_row_that_must_be_there() -> None:
    with pytest.raises(KeyError, match="exact_match of human was not measured for all"):
        get_row(make_result(), "exact_match", "human")
