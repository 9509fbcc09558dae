"""The claims table: every rule at its edges, the statistics against closed forms, and the committed verdicts recomputed."""

import math

import numpy as np
import pandas as pd
import pytest

from helpers import experiments, models
from helpers.__main__ import main
from helpers.experiments import records as results
from helpers.models import inspect as anatomy
from helpers.report import statistics as intervals
from helpers.report import tables
from helpers.report.claims import CLAIMS, amp, checks, pikachu, run_checks, slim, verdicts
from helpers.report.claims import table as claims
from helpers.report.claims.evidence import Claim, Evidence
from helpers.report.claims.verdicts import APPROXIMATELY, CANNOT_TELL, CONTRADICTS, DOES_NOT, HOLDS, NOT_YET, Paired
from helpers.runtime import UserError


def make_run(name, right, seed=0, *, n=10, val_loss=0.5, source="folder", stopped=None, dataset=None, profile="full", **more):
    """A record with these test images right (of class 0, all others called class 1), and its predictions."""
    predicted = np.array([0 if index in right else 1 for index in range(n)], np.int16)
    epochs = more.pop("epochs", [{"val_accuracy": 0.6, "train_accuracy": 0.5, "train_seconds": 1.0}])
    record = {
        "experiment": name,
        "report": more.pop("report", "amp"),
        "seed": seed,
        "profile": profile,
        "dataset": {"name": dataset or name.split("/")[0], "source": source, "fingerprint": "ab"},
        "history": epochs,
        "stopped_early": stopped,
        "test": {
            "loss": more.pop("loss", 0.5),
            "accuracy": len(right) / n,
            "n": n,
            "confusion": [[len(right), n - len(right)], [0, 0]],
        },
        "predictions": f"seed{seed}.predictions.npz",
        "best": {"val_loss": val_loss},
        "environment": {"device": more.pop("device", "CPU, 2 threads")},
    }
    record["dataset"] |= {"n_train": 50, "n_val": 8, "n_test": n}
    return record, {"true": np.zeros(n, np.int16), "predicted": predicted, "confidence": np.ones(n, np.float32)}


def save(folder, *runs):
    for run in runs:
        results.save(*run, folder)
    return Evidence(folder)


def find(check, quoted, evidence=None):
    return Claim("amp", "here", "so", quoted, check).find(evidence)


@pytest.mark.parametrize(
    ("quoted", "low", "high"),
    [
        ("0.91", 0.905, 0.915),
        ("4,761,770", 4_761_769.5, 4_761_770.5),
        ("25.5×10^6", 25.45e6, 25.55e6),
        ("79.46 %", 0.79455, 0.79465),
        ("below 5 million", 4.5e6, 5.5e6),
        ("90-91%", 0.90, 0.91),
    ],
)
def test_a_printed_number_stands_for_all_that_round_to_it(quoted, low, high):
    assert verdicts.printed_range(quoted) == pytest.approx((low, high), rel=1e-12)


def test_accuracies_printed_in_three_ways_are_the_same():
    assert verdicts.fraction_range("0.91") == verdicts.fraction_range("91 %") == pytest.approx((0.905, 0.915))
    assert verdicts.fraction_range("91") == pytest.approx((0.905, 0.915))
    with pytest.raises(ValueError, match="'greatly' has no number"):
        verdicts.printed_range("greatly")


@pytest.mark.parametrize(
    ("rule", "arguments", "verdict"),
    [
        ("count", ("25.5×10^6", 25_503_912), HOLDS),
        ("count", ("25.5×10^6", 25_557_032), APPROXIMATELY),
        ("count", ("133,072", 131_072), DOES_NOT),
        ("count", ("100", 101), APPROXIMATELY),
        ("count", ("100", 101.1), DOES_NOT),
        ("count", ("3", math.nan), DOES_NOT),
        ("structure", ("8*8", "8*8"), HOLDS),
        ("structure", ("8*8", "16*16"), DOES_NOT),
        ("bound", (10, 10, 20), HOLDS),
        ("bound", (21, 10, 20), DOES_NOT),
        ("similar sizes", (100, 105), HOLDS),
        ("similar sizes", (110, 100), APPROXIMATELY),
        ("similar sizes", (100, 111), DOES_NOT),
        ("self-consistency", ("258", 250), CONTRADICTS),
        ("self-consistency", ("79.46", 100 * 205 / 258), HOLDS),
        ("self-consistency", ("ResNext-50", "ResNext-29"), CONTRADICTS),
        ("accuracy", ("79.46", (0.7536, 0.8498)), HOLDS),
        ("accuracy", ("0.78", (0.785, 0.79)), HOLDS),
        ("accuracy", ("0.78", (0.804, 0.82)), APPROXIMATELY),
        ("accuracy", ("0.78", (0.806, 0.82)), DOES_NOT),
        ("accuracy", ("90-91%", (0.85, 0.89)), APPROXIMATELY),
        ("accuracy", ("90-91%", (0.905, 0.907)), HOLDS),
        ("loss", ("0.5021", (0.4582,)), APPROXIMATELY),
        ("loss", ("0.5021", (0.4, 0.6)), HOLDS),
        ("loss", ("0.5021", (0.4,)), CANNOT_TELL),
        ("loss", ("0.5021", (0.4, 0.41)), DOES_NOT),
        ("lower loss", ((-0.1,),), CANNOT_TELL),
        ("lower loss", ((-0.1, -0.2),), HOLDS),
        ("lower loss", ((-0.1, -0.2), True), APPROXIMATELY),
        ("lower loss", ((0.1, 0.2),), DOES_NOT),
        ("lower loss", ((0.1, 0.2), True), CANNOT_TELL),
        ("lower loss", ((-0.1, 0.2),), CANNOT_TELL),
        ("each one", (9, 9), HOLDS),
        ("each one", (9, 9, True), APPROXIMATELY),
        ("each one", (95, 100), APPROXIMATELY),
        ("each one", (94, 100), DOES_NOT),
        ("each one", (94, 100, True), CANNOT_TELL),
        ("cost", ((1.01, 2.0),), HOLDS),
        ("cost", ((1.01, 2.0), True), APPROXIMATELY),
        ("cost", ((0.9, 1.1),), CANNOT_TELL),
        ("cost", ((0.5, 0.9),), DOES_NOT),
        ("cost", ((0.5, 0.9), True), CANNOT_TELL),
        ("printed difference", (0.05, 3.0), CANNOT_TELL),
        ("printed difference", (0.049, 3.0), HOLDS),
        ("printed difference", (0.049, -3.0), CONTRADICTS),
    ],
)
def test_the_rules_at_their_edges(rule, arguments, verdict):
    assert verdicts.RULES[rule](*arguments) == verdict


def right(*wrong, n=40):
    """Right on all of n images but these."""
    answers = np.ones(n, bool)
    answers[list(wrong)] = False
    return answers


MUCH_WORSE = right(*range(10))


@pytest.mark.parametrize(
    ("first", "second", "stand_in", "verdict"),
    [
        ([right()], [MUCH_WORSE], False, APPROXIMATELY),
        ([MUCH_WORSE], [right()], False, CANNOT_TELL),
        ([right()] * 2, [MUCH_WORSE] * 2, False, HOLDS),
        ([right()] * 2, [MUCH_WORSE] * 2, True, APPROXIMATELY),
        ([MUCH_WORSE] * 2, [right()] * 2, False, DOES_NOT),
        ([MUCH_WORSE] * 2, [right()] * 2, True, CANNOT_TELL),
        ([right(), right(1)], [MUCH_WORSE, right(0)], False, APPROXIMATELY),  # the second seed sees no difference
        ([right(0)] * 2, [right(1, 2)] * 2, False, CANNOT_TELL),
    ],
)
def test_a_comparison_needs_images_and_seeds(first, second, stand_in, verdict):
    assert verdicts.comparison(Paired(first, second), stand_in) == verdict


def test_one_seed_is_mcnemars_exact_test():
    first, second = right(1), right(2, 3, 4, 5, 6, 7)
    arrays = [{"true": np.ones(40, int), "predicted": answers.astype(int)} for answers in (first, second)]
    paired = Paired([first], [second])
    assert (paired.only_first, paired.only_second, paired.p) == intervals.mcnemar(*arrays) == (6, 1, 0.125)
    assert paired.difference == pytest.approx(5 / 40)


def test_an_image_counts_once_over_seeds():
    # Image 0: each model under one seed, no vote. Image 1: the first under both. Image 2: the second under one.
    paired = Paired([right(0, 2, n=3), right(n=3)], [right(1, n=3), right(0, 1, n=3)])
    assert paired.right.tolist() == [[-1, 1, -1], [1, 1, 0]]
    assert (paired.only_first, paired.only_second, paired.p) == (1, 1, 1.0)
    assert paired.by_seed.tolist() == pytest.approx([-1 / 3, 2 / 3]) and not paired.agree


def test_the_interval_reaches_over_every_seed():
    paired = Paired([right()] * 2, [right(0), right(*range(20))])
    assert paired.interval[0] <= 1 / 40 and paired.interval[1] >= 20 / 40
    one = Paired([right()], [right(0, 1, 2, 3)])
    # Differences of 1 on 4 of 40 images: mean 0.1, deviation √(0.1 · 0.9), half of 1.96 √(0.09 / 40).
    assert one.interval == pytest.approx((0.1 - 1.959964 * math.sqrt(0.09 / 40), 0.1 + 1.959964 * math.sqrt(0.09 / 40)))


@pytest.mark.parametrize(
    ("first", "second", "margin", "stand_in", "verdict"),
    [
        ([right()] * 2, [right()] * 2, 0.01, False, HOLDS),
        ([right()] * 2, [right()] * 2, 0.01, True, APPROXIMATELY),
        ([right()], [right()], 0.01, False, APPROXIMATELY),
        ([right()] * 2, [MUCH_WORSE] * 2, 0.05, False, DOES_NOT),
        ([MUCH_WORSE] * 2, [right()] * 2, 0.05, False, DOES_NOT),
        ([right()] * 2, [MUCH_WORSE] * 2, 0.05, True, CANNOT_TELL),
        ([right()] * 2, [right(0)] * 2, 0.05, False, CANNOT_TELL),
    ],
)
def test_closeness_is_the_whole_interval_inside_the_margin(first, second, margin, stand_in, verdict):
    assert verdicts.closeness(Paired(first, second), margin, stand_in) == verdict


def test_images_needed_are_connors():
    # The published example of the formula: discordant shares 0.45 and 0.05 need 23 pairs.
    assert verdicts.images_needed(0.45, 0.05) == verdicts.images_needed(0.05, 0.45) == 23


def test_seeds_needed_are_guenthers():
    # (1.959964 + 0.841621)² · 1 + 1.959964² / 2 = 7.8489 + 1.9207 = 9.77
    assert verdicts.seeds_needed(0.01, 0.01) == 10
    assert verdicts.seeds_needed(1.0, 0.0) == 2


def test_what_it_would_take_is_said_in_words():
    undecided = Paired([right(0)], [right(1, 2)])
    more = verdicts.images_needed(2 / 40, 1 / 40) - 40
    assert undecided.needed() == f"told by {more:,} more images; a second seed at least"
    assert Paired([right()], [MUCH_WORSE]).needed() == "told by these images; a second seed at least"
    assert Paired([right(0)], [right(1)]).needed() == "no difference to be told"
    several = Paired([right(0), right(0)], [right(1, 2), right(1)])
    assert several.needed().endswith(f"more images or {verdicts.seeds_needed(0.0125, 0.0125 * math.sqrt(2)) - 2} more seeds")
    # One image of 40: difference 0.025, deviation √(0.025 · 0.975); (1.959964 · 0.15612 / (0.05 − 0.025))² = 149.8 images.
    assert Paired([right()] * 2, [right(0)] * 2).needed_inside(0.05) == "inside with 110 more images"
    assert Paired([right()] * 2, [MUCH_WORSE] * 2).needed_inside(0.05) == "no number of images brings it inside"


def test_printed_differences_in_closed_form():
    p, interval, needed = verdicts.printed_difference(0.8333, 0.7946, 258)
    # z = 0.0387 / √(2 · 0.81395 · 0.18605 / 258) = 1.1296
    assert p == pytest.approx(0.2587, abs=5e-4)
    assert interval == pytest.approx((0.0387 - 0.0671, 0.0387 + 0.0671), abs=5e-4)
    assert needed == 1584
    assert verdicts.printed_difference(0.5, 0.5, 100)[2] is None


def test_the_interval_of_an_accuracy_reaches_over_its_seeds():
    assert verdicts.accuracy_interval([208 / 258], 258) == intervals.wilson(208, 258)
    low, high = verdicts.accuracy_interval([0.7, 0.9], 100)
    assert (low, high) == (intervals.wilson(70, 100)[0], intervals.wilson(90, 100)[1])


def test_arithmetic_on_the_printed_networks():
    # Design section 10: the four `slim` networks, here in closed form from the printed rows.
    counts = [slim.closed_form_parameters(name) for name in ("trial 1", "trial 2", "trial 3", "final")]
    assert counts == [11_160_618, 4_963_882, 4_266_410, 4_978_730]
    printed, real = amp.printed_lines(), amp.real_lines()
    assert len(printed) == len(real) == 72
    assert sum(line.parameters for line in printed) - sum(line.parameters for line in real) == 6 * 2_000
    # Five convolutions, the five BatchNorms behind them and three blocks are printed at 16 pixels for 32.
    wrong = [(line.kind, line.side, true.side) for line, true in zip(printed, real, strict=True) if line.side != true.side]
    assert sorted(wrong) == [("B", 16, 32)] * 3 + [("C", 16, 32)] * 5 + [("N", 16, 32)] * 5
    convolutions = [pair for pair in zip(printed, real, strict=True) if pair[0].kind == "C"]
    assert [number for number, (line, true) in enumerate(convolutions, 1) if line.side != true.side] == [4, 5, 8, 11, 12]
    assert (round(amp.megabytes(printed), 2), round(amp.megabytes(real), 2)) == (45.00, 64.50)


def test_a_printed_accuracy_is_a_whole_number_of_images_or_not():
    assert pikachu.nearest_fraction(79.46, 258) == pytest.approx(79.457, abs=1e-3)
    assert pikachu.nearest_fraction(45.06, 1000) == pytest.approx(45.1)


@pytest.mark.parametrize(
    ("report", "words", "ours", "verdict"),
    [
        ("pikachu", "confusion matrix of our ResNext-50 is of the 258", "250", CONTRADICTS),
        ("pikachu", "confusion matrix of ResNext-50 is of the 258", "250", CONTRADICTS),
        ("pikachu", "confusion matrix of Resnet-18 is of the 258", "247", CONTRADICTS),
        ("pikachu", "test accuracy(%) of our model is one of the 1000", "45.10", CONTRADICTS),
        ("pikachu", "Resnet-18 over our model, by the printed numbers", "+3.87 points, p = 0.259", CANNOT_TELL),
        ("amp", "# params. of ResNet-50, if BatchNorm is not counted", "25,503,912", HOLDS),
        ("amp", "Param # of Conv2d-30", "131,072", DOES_NOT),
        ("amp", "The lines add up to Total params", "4,773,770", CONTRADICTS),
        ("amp", "The column Output Shape", "59 of 72", DOES_NOT),
        ("amp", "The lines give the Forward/backward pass size", "45.00", CONTRADICTS),
        ("amp", "small perturbations to the input data", "parameters", DOES_NOT),
        ("amp", "maximum size of the perturbation", "0.500", HOLDS),
        ("zoo", "GoogleNet includes tens", "6,624,904", DOES_NOT),
        ("zoo", "the width is multiplied by a factor of 2", "0.5", CONTRADICTS),
        ("slim", "ResNet18 is the smallest net in [1]", "272,474", DOES_NOT),
        ("slim", "Output size of conv1", "32*32", CONTRADICTS),
        ("slim", "Cutting channels to half", "32-32-64-128-256", CONTRADICTS),
        ("slim", "Figure 4 describes a network", "4,978,730", HOLDS),
    ],
)
def test_known_findings(report, words, ours, verdict):
    (claim,) = [claim for claim in CLAIMS if claim.report == report and words in claim.claim]
    found = claim.find(None)
    assert (found.ours, found.verdict) == (ours, verdict)


def test_a_model_that_is_not_there_is_not_yet_run_until_it_is(monkeypatch):
    check = checks.parameters("not_there", 10)
    assert find(check, "11,181,642") == ("", "", NOT_YET, "parameters of models.build('not_there', 10)")
    monkeypatch.setitem(models.MODELS, "not_there", models.MODELS["resnet18"])
    assert find(check, "11,181,642")[:3] == ("11,181,642", "", HOLDS)
    anatomy.network.cache_clear()


def test_a_run_that_is_not_there_is_not_yet_run_until_it_is(tmp_path):
    check = run_checks.Accuracy("cifar10/a")
    assert find(check, "0.80", save(tmp_path)).verdict == NOT_YET
    evidence = save(tmp_path, make_run("cifar10/a", range(8)), make_run("cifar10/a", range(6), seed=1))
    low, high = intervals.wilson(6, 10)[0], intervals.wilson(8, 10)[1]
    expected = ("70.00%", f"{low:.2%} to {high:.2%}", HOLDS, "run record of cifar10/a, seeds 0, 1")
    assert find(check, "0.80", evidence) == expected
    assert find(run_checks.Recall("cifar10/a", 0, 7, 3), "", evidence).ours == "70.00%"
    assert find(run_checks.Recall("cifar10/a", 0, 0, 100), "", evidence).verdict == DOES_NOT
    assert find(run_checks.Accuracy("cifar10/a", epoch=1), "0.60", evidence).ours == "60.00%"
    assert find(run_checks.Accuracy("cifar10/a", epoch=2), "0.60", evidence).verdict == NOT_YET


def test_only_full_runs_on_real_images_are_evidence(tmp_path):
    evidence = save(
        tmp_path,
        make_run("cifar10/a", [], source="sample"),
        make_run("cifar10/b", [], stopped="time budget"),
        make_run("cifar10/c", [], profile="quick"),
        make_run("cifar100/d", [], stopped="no better accuracy", report="zoo"),
    )
    assert [record["experiment"] for record in evidence.records] == ["cifar100/d"]


def test_sizes_of_data_come_from_a_record(tmp_path):
    check = checks.published("cifar10", lambda counts: sum(counts.values()))
    assert find(check, "60,000", save(tmp_path)).verdict == NOT_YET
    evidence = save(tmp_path, make_run("cifar10_tenth/a", [], dataset="cifar10_tenth-jpeg"))
    assert find(check, "60,000", evidence)[:3] == ("60,000", "", HOLDS)
    assert find(checks.pixels("cifar10", "x"), "32x32", evidence).verdict == HOLDS
    assert find(checks.published("cifar100", len), "2", evidence).verdict == NOT_YET
    assert find(checks.images("cifar10_tenth", "train", "validation"), "58", evidence).verdict == HOLDS


def test_a_comparison_takes_the_same_seeds_of_both(tmp_path):
    check = run_checks.Better("cifar10/a", "cifar10/b")
    evidence = save(tmp_path, make_run("cifar10/a", range(10), seed=0), make_run("cifar10/b", [], seed=1))
    assert find(check, "", evidence).verdict == NOT_YET
    evidence = save(tmp_path, make_run("cifar10/b", [], seed=0))
    found = find(check, "", evidence)
    assert found.ours == "+100.00 points (10 : 0 images), p = 0.002" and found.verdict == APPROXIMATELY
    assert found.how == "run records of cifar10/a and cifar10/b, seed 0"
    evidence = save(tmp_path, make_run("cifar10/a", range(10), seed=1, dataset="cifar10-jpeg"))
    found = find(check, "", evidence)
    assert found.verdict == HOLDS and found.how.endswith("seeds 0, 1, images from JPEG files")


def test_runs_on_a_part_of_the_data_stand_in_for_a_comparison(tmp_path):
    runs = [(name, answers) for name, answers in (("a", range(10)), ("b", []))]
    evidence = save(
        tmp_path, *(make_run(f"cifar10_tenth/{name}", answers, seed=seed) for name, answers in runs for seed in (0, 1))
    )
    found = find(run_checks.Better("cifar10/a", "cifar10/b"), "", evidence)
    assert found.verdict == APPROXIMATELY
    assert found.how == "run records of cifar10_tenth/a and cifar10_tenth/b, seeds 0, 1, standing in for cifar10"
    assert find(run_checks.Better("cifar100/b", "cifar100/a"), "", evidence).verdict == CANNOT_TELL
    assert find(run_checks.Better("pikachu/a", "pikachu/b"), "", evidence).verdict == NOT_YET
    assert find(run_checks.Accuracy("cifar10/a"), "1.00", evidence).verdict == NOT_YET, "an accuracy has no stand-in"


def test_losses_epochs_and_costs_are_compared_run_by_run(tmp_path):
    slow = [{"val_accuracy": 0.7, "train_accuracy": 1, "train_seconds": seconds} for seconds in (2.0, 2.2)]
    fast = [{"val_accuracy": value, "train_accuracy": 1, "train_seconds": 1.0} for value in (0.6, 0.8)]
    for seed in (0, 1):
        save(tmp_path, make_run("cifar10/a", [0], seed, loss=0.4, epochs=slow), make_run("cifar10/b", [0], seed, epochs=fast))
    evidence = Evidence(tmp_path)
    pair = ("cifar10/a", "cifar10/b")
    assert find(run_checks.LowerLoss(*pair), "", evidence)[:3] == ("-0.1000", "-0.1000 to -0.1000", HOLDS)
    assert find(run_checks.EveryEpoch(*pair), "", evidence)[:3] == ("in 2 of 4 epochs", "", DOES_NOT)
    assert find(run_checks.Slower(*pair), "", evidence)[:3] == ("×2.10", "×2.00 to ×2.20", HOLDS)
    assert find(run_checks.Loss("cifar10/a"), "0.50", evidence)[:3] == ("0.5000", "0.5000 to 0.5000", HOLDS)
    assert find(run_checks.Close(*pair, 0.05, "ours"), "", evidence)[:3] == ("+0.00 points", "+0.00 to +0.00 points", HOLDS)
    save(tmp_path, make_run("cifar10/c", [0], device="NVIDIA T4"))
    assert find(run_checks.Slower("cifar10/c", "cifar10/a"), "", Evidence(tmp_path)).verdict == NOT_YET


def test_quoted_accuracies_are_those_of_the_plan():
    """Both were copied from the reports; where they differ, one was copied wrong."""
    compared = 0
    for claim in CLAIMS:
        reported = experiments.EXPERIMENTS.get(getattr(claim.check, "experiment", ""))
        if isinstance(claim.check, run_checks.Accuracy) and not claim.check.epoch and reported and reported.reported:
            low, high = verdicts.fraction_range(claim.quoted)
            values = np.atleast_1d(reported.reported["test_accuracy"])
            assert low <= values.min() and values.max() <= high, claim
            compared += 1
    assert compared >= 7


def test_every_row_has_a_place_a_rule_and_a_value():
    rows = [(claim.report, claim.place, claim.claim) for claim in CLAIMS]
    assert len(set(rows)) == len(rows) >= 70
    assert {claim.report for claim in CLAIMS} == {"pikachu", "amp", "zoo", "slim"}
    assert {claim.check.kind for claim in CLAIMS} == set(verdicts.RULES)
    assert all(claim.quoted and claim.check.how and "  " not in claim.claim for claim in CLAIMS)


def test_the_key_states_the_rule_of_every_kind():
    key = claims.key()
    for kind, rule in verdicts.RULES.items():
        assert f"- **{kind}**: {' '.join(rule.__doc__.split())}" in key
    assert all(f"*{verdict}*" in key for verdict in verdicts.VERDICTS)


def test_the_committed_table_is_recomputed_and_the_same():
    table = claims.claims_table()
    assert list(table.columns) == claims.COLUMNS
    assert set(table["verdict"]) <= set(verdicts.VERDICTS)
    written = (results.RESULTS / "claims.csv").read_text(encoding="utf-8")
    assert written == table.to_csv(index=False), "run python -m helpers table"
    assert (results.RESULTS / "tables" / "claims_key.md").read_text(encoding="utf-8") == claims.key()


def test_the_table_command_writes_the_claims(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "write", lambda records, folder: [])
    assert main(["table", "--results-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["README.md", "claims.csv", "claims_key.md"]
    rows = (tmp_path / "claims.csv").read_text().splitlines()
    assert len(rows) == len(CLAIMS) + 1 and rows[0] == ",".join(claims.COLUMNS)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="claims could not be written"):
        claims.write(tmp_path / "file")


def test_the_short_form_counts_every_verdict_by_hand():
    table = pd.DataFrame(
        {"report": ["zoo", "zoo", "amp", "zoo"], "verdict": [NOT_YET, HOLDS, HOLDS, HOLDS], "claim": list("abcd")}
    )
    counted = claims.counts(table)
    assert list(counted.columns) == ["statements of", "in all", *verdicts.VERDICTS]
    assert counted[["statements of", "in all", HOLDS, NOT_YET, DOES_NOT]].values.tolist() == [
        ["zoo", 3, 2, 1, 0],
        ["amp", 1, 1, 0, 0],
        ["all", 4, 3, 1, 0],
    ]
