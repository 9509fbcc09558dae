"""The claims table: every rule at its edges, the runs that may judge, and the committed verdicts recomputed."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers import experiments, models
from helpers.__main__ import main
from helpers.experiments import records as results
from helpers.models import inspect as anatomy
from helpers.report import claims, tables
from helpers.report import statistics as intervals
from helpers.report.claims import findings, measures, rules
from helpers.report.claims.findings import Statement, find
from helpers.report.claims.rules import APPROXIMATELY, CANNOT_TELL, CONTRADICTS, DOES_NOT, HOLDS, NOT_YET
from helpers.report.claims.runs import Runs
from helpers.report.statistics import Paired
from helpers.runtime import UserError
from helpers.tests.report.test_statistics import MUCH_WORSE, right


def make_run(name, right, seed=0, *, n=10, **more):
    """A record with these test images right (of class 0, all others called class 1), and its predictions."""
    predicted = np.array([0 if index in right else 1 for index in range(n)], np.int16)
    history = more.pop("history", [{"val_accuracy": 0.6, "val_loss": 0.5, "train_accuracy": 0.5, "train_seconds": 1.0}])
    record = {
        "experiment": name,
        "report": more.pop("report", "amp"),
        "seed": seed,
        "profile": more.pop("profile", "full"),
        "dataset": {"name": more.pop("dataset", name.split("/")[0]), "source": more.pop("source", "folder")},
        "recipe": {"epochs": more.pop("epochs", 1), "schedule": more.pop("schedule", "cosine")},
        "history": history,
        "stopped_early": more.pop("stopped", None),
        "seconds": 1.0,
        "limits": {"time_budget": more.pop("time_budget", None)},
        "test": {
            "loss": more.pop("loss", 0.5),
            "accuracy": len(right) / n,
            "n": n,
            "confusion": [[len(right), n - len(right)], [0, 0]],
        },
        "predictions": f"seed{seed}.predictions.npz",
        "environment": {"device": more.pop("device", "CPU, 2 threads")},
    }
    assert not more
    filled = {"epoch": 1, "train_loss": 0.5, "train_accuracy": 0.5, "val_loss": 0.5, "val_accuracy": 0.6}
    record["history"] = [filled | {"seconds": 1.0, "train_seconds": 0.9} | row for row in history]
    record |= {"model": {"name": "a", "params": 1, "macs": 1}, "best": {"epoch": 1, "val_accuracy": 0.6, "val_loss": 0.5}}
    record["dataset"] |= {
        "fingerprint": "ab",
        "classes": [*"abcdefghij"],
        "num_classes": 10,
        "n_train": 50,
        "n_val": 8,
        "n_test": n,
    }
    return record, {"true": np.zeros(n, np.int16), "predicted": predicted, "confidence": np.ones(n, np.float32)}


def save(folder, *runs):
    for run in runs:
        results.save(*run, folder)
    return Runs(folder)


def judge(runs, kind, quoted, *experiments, **more):
    return find(Statement("amp", "here", "so", quoted, kind, experiments=experiments, **more), runs)


SEEDS = (0.7990, 0.8000, 0.8010)  # s = 0.001, half of the interval 4.302653 · 0.001 · √(4 / 3) = 0.00497
WIDE = (0.78, 0.80, 0.82)  # half 0.0994


@pytest.mark.parametrize(
    ("kind", "arguments", "verdict"),
    [
        ("count", ("25.5×10^6", 25_503_912), HOLDS),
        ("count", ("25.5×10^6", 25_557_032), APPROXIMATELY),
        ("count", ("133,072", 131_072), DOES_NOT),
        ("count", ("100", 101), APPROXIMATELY),
        ("count", ("100", 101.1), DOES_NOT),
        ("count", ("3", math.nan), DOES_NOT),
        ("structure", ("8*8", "8*8"), HOLDS),
        ("structure", ("8*8", "16*16"), DOES_NOT),
        ("bound", ("", 10, 10, 20), HOLDS),
        ("bound", ("", 21, 10, 20), DOES_NOT),
        ("bound", ("", [10, 20], 10, 20), HOLDS),
        ("bound", ("", [9, 20], 10, 20), DOES_NOT),
        ("similar sizes", ("", (100, 105)), HOLDS),
        ("similar sizes", ("", (110, 100)), APPROXIMATELY),
        ("similar sizes", ("", (100, 111)), DOES_NOT),
        ("self-consistency", ("258", 250), CONTRADICTS),
        ("self-consistency", ("79.46", 100 * 205 / 258), HOLDS),
        ("self-consistency", ("ResNext-50", "ResNext-29"), CONTRADICTS),
        ("accuracy", ("79.6 %", SEEDS, 1000), HOLDS),
        ("accuracy", ("82.4 %", SEEDS, 1000), APPROXIMATELY),
        ("accuracy", ("82.6 %", SEEDS, 1000), DOES_NOT),
        ("accuracy", ("80 %", WIDE, 1000), CANNOT_TELL),
        ("accuracy", ("93 %", WIDE, 1000), DOES_NOT),
        ("accuracy", ("90-91%", (0.885, 0.886), 1000), APPROXIMATELY),
        ("accuracy", ("90-91%", (0.905, 0.906), 1000), HOLDS),
        ("accuracy", ("80 %", (0.80,), 1000), CANNOT_TELL),
        ("accuracy", ("66.38", (0.57,), 1000), CANNOT_TELL),
        ("accuracy", ("66.38", (0.229,), 1000), DOES_NOT),
        ("loss", ("0.5021", (0.50, 0.502, 0.504)), HOLDS),
        ("loss", ("0.53", (0.50, 0.502, 0.504)), APPROXIMATELY),
        ("loss", ("0.60", (0.50, 0.502, 0.504)), DOES_NOT),
        ("loss", ("0.5021", (0.4, 0.6)), CANNOT_TELL),
        ("loss", ("0.5021", (0.5,)), CANNOT_TELL),
        ("accuracy", ("80 %", (0.79, 0.80, 0.81), 1000), HOLDS),  # 9.9 points wide
        ("accuracy", ("80 %", (0.7898, 0.80, 0.8102), 1000), CANNOT_TELL),  # 10.1
        ("loss", ("0.5", (0.49, 0.50, 0.51)), HOLDS),  # as wide as 19.9 % of the mean
        ("loss", ("0.5", (0.4898, 0.50, 0.5102)), CANNOT_TELL),  # 20.3 %
        ("loss", ("0.550", (0.5, 0.5)), APPROXIMATELY),  # 0.0495 outside
        ("loss", ("0.551", (0.5, 0.5)), DOES_NOT),  # 0.0505
        ("lower loss", ((-0.1,),), CANNOT_TELL),
        ("lower loss", ((-0.1, -0.2),), HOLDS),
        ("lower loss", ((0.1, 0.2),), DOES_NOT),
        ("lower loss", ((-0.1, 0.2),), CANNOT_TELL),
        ("each one", ("", (9, 9)), HOLDS),
        ("each one", ("", (95, 100)), APPROXIMATELY),
        ("each one", ("", (94, 100)), DOES_NOT),
        ("each epoch", (9, 9, 2), HOLDS),
        ("each epoch", (9, 9, 1), CANNOT_TELL),
        ("each epoch", (95, 100, 2), APPROXIMATELY),
        ("each epoch", (94, 100, 2), DOES_NOT),
        ("cost", ((1.01, 2.0),), HOLDS),
        ("cost", ((0.9, 1.1),), CANNOT_TELL),
        ("cost", ((0.5, 0.9),), DOES_NOT),
        ("printed difference", (0.05, 3.0), CANNOT_TELL),
        ("printed difference", (0.049, 3.0), HOLDS),
        ("printed difference", (0.049, -3.0), CONTRADICTS),
    ],
)
def test_the_rules_at_their_edges(kind, arguments, verdict):
    assert findings.KINDS[kind][1](*arguments) == verdict


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([right()], [MUCH_WORSE], CANNOT_TELL),
        ([MUCH_WORSE], [right()], CANNOT_TELL),
        ([right()] * 2, [MUCH_WORSE] * 2, HOLDS),
        ([MUCH_WORSE] * 2, [right()] * 2, DOES_NOT),
        ([right(), right(1)], [MUCH_WORSE, right(0)], CANNOT_TELL),  # the second seed sees no difference
        ([right(0)] * 2, [right(1, 2)] * 2, CANNOT_TELL),
        # 40 images favour the first and 70 the second, but by mean accuracy both seeds favour the first.
        ([right(*range(40, 75), n=200), right(*range(75, 110), n=200)], [right(*range(40), n=200)] * 2, CANNOT_TELL),
    ],
)
def test_a_comparison_needs_enough_images_and_two_seeds(first, second, verdict):
    assert rules.comparison(Paired(first, second)) == verdict


@pytest.mark.parametrize(
    ("first", "second", "margin", "verdict"),
    [
        ([right()] * 2, [right()] * 2, 0.01, HOLDS),
        ([right()], [right()], 0.01, CANNOT_TELL),
        ([right()] * 2, [MUCH_WORSE] * 2, 0.05, DOES_NOT),
        ([MUCH_WORSE] * 2, [right()] * 2, 0.05, DOES_NOT),
        ([right()] * 2, [right(0)] * 2, 0.05, CANNOT_TELL),
    ],
)
def test_closeness_requires_the_whole_interval_inside_the_margin(first, second, margin, verdict):
    assert rules.closeness(Paired(first, second), margin) == verdict


def test_arithmetic_on_the_printed_networks():
    printed, real = measures.printed_lines(), anatomy.lines(anatomy.network("resnext29_under5m", 10), 32)
    assert len(printed) == len(real) == 72
    assert sum(line.parameters for line in printed) - sum(line.parameters for line in real) == 6 * 2_000
    # Five convolutions, the five BatchNorms behind them and three blocks are printed at 16 pixels instead of 32.
    wrong = [(line.kind, line.side, true.side) for line, true in zip(printed, real, strict=True) if line.side != true.side]
    assert sorted(wrong) == [("B", 16, 32)] * 3 + [("C", 16, 32)] * 5 + [("N", 16, 32)] * 5
    convolutions = [pair for pair in zip(printed, real, strict=True) if pair[0].kind == "C"]
    assert [number for number, (line, true) in enumerate(convolutions, 1) if line.side != true.side] == [4, 5, 8, 11, 12]
    assert (round(measures.megabytes(printed), 2), round(measures.megabytes(real), 2)) == (45.00, 64.50)


def test_the_accuracy_nearest_to_a_printed_one_is_a_whole_number_of_images():
    assert measures.OTHERS["nearest fraction"](79.46, 258) == pytest.approx(79.457, abs=1e-3)
    assert measures.OTHERS["nearest fraction"](45.06, 1000) == pytest.approx(45.1)


@pytest.mark.parametrize(
    ("report", "words", "ours", "verdict"),
    [
        ("pikachu", "confusion matrix of our ResNext-50 covers the 258", "250", CONTRADICTS),
        ("pikachu", "confusion matrix of ResNext-50 covers the 258", "250", CONTRADICTS),
        ("pikachu", "confusion matrix of Resnet-18 covers the 258", "247", CONTRADICTS),
        ("pikachu", "test accuracy(%) of our model is possible with the 1000", "45.10", CONTRADICTS),
        ("pikachu", "Resnet-18 over our model, by the printed numbers", "+3.87 points, p = 0.259", CANNOT_TELL),
        ("pikachu", "starts with a single 3x3 convolution", "3x3, 3x3 max pool", DOES_NOT),
        ("pikachu", "29 layer in total", "29", HOLDS),
        ("amp", "# params. of ResNet-50, if BatchNorm is not counted", "25,503,912", HOLDS),
        ("amp", "Param # of Conv2d-30", "131,072", DOES_NOT),
        ("amp", "The lines add up to Total params", "4,773,770", CONTRADICTS),
        ("amp", "The column Output Shape", "59 of 72", DOES_NOT),
        ("amp", "The lines give the Forward/backward pass size", "45.00", CONTRADICTS),
        ("amp", "small perturbations to the input data", "parameters", DOES_NOT),
        ("amp", "maximum size of the perturbation", "0.500", HOLDS),
        ("amp", "Each block has a bottleneck width of 4", "4, 8, 16", CONTRADICTS),
        ("zoo", "GoogleNet includes tens", "6,624,904", CANNOT_TELL),
        ("zoo", "fewer parameters than VGGNet", "23.4 to 25.4", HOLDS),
        ("zoo", "fewer parameters than GoogleNet", "1.0", CANNOT_TELL),
        ("zoo", "than all previous deep architectures", "0.14 to 0.14", DOES_NOT),
        ("zoo", "SqueezeNet has fewer parameters", "0.14 to 0.14", HOLDS),
        ("zoo", "the width is multiplied by a factor of 2", "2", HOLDS),  # the paper's rule, by the paper's network
        ("zoo", "on par with deeper networks (WideResnet6), by the printed", "+17.35 points, p < 0.001", CANNOT_TELL),
        ("slim", "ResNet18 is the smallest net in [1]", "269,722", DOES_NOT),
        ("slim", "Output size of conv1", "32*32", CONTRADICTS),
        ("slim", "Cutting channels to half", "32-32-64-128-256", CONTRADICTS),
        ("slim", "Figure 4 describes a network", "4,978,730", HOLDS),
        ("slim", "the model does make better performance", "+1.16 points, p = 0.007", HOLDS),
    ],
)
def test_known_findings(report, words, ours, verdict):
    (row,) = [row for row in claims.statements() if row.report == report and words in row.claim]
    found = find(row, None)
    assert (found.ours, found.verdict) == (ours, verdict)


def test_a_missing_model_counts_as_not_yet_run_until_it_exists(monkeypatch):
    row = Statement("amp", "here", "so", "11,181,642", "count", "parameters", networks=[("not_there", 10)])
    assert find(row, None) == ("", "", NOT_YET, "parameters of models.build('not_there', 10)")
    monkeypatch.setitem(models.MODELS, "not_there", models.MODELS["resnet18"])
    assert find(row, None)[:3] == ("11,181,642", "", HOLDS)
    anatomy.network.cache_clear()


def test_a_missing_run_counts_as_not_yet_run_until_it_exists(tmp_path):
    assert judge(save(tmp_path), "accuracy", "0.80", "cifar10/a") == ("", "", NOT_YET, "runs of cifar10/a")
    runs = save(tmp_path, *(make_run("cifar10/a", range(count), seed) for seed, count in enumerate((8, 8, 8))))
    expected = ("80.00%", "80.00% to 80.00%", HOLDS, "runs of cifar10/a, seeds 0, 1, 2")
    assert judge(runs, "accuracy", "0.80", "cifar10/a") == expected
    share = {"label": 0, "printed": "70 %"}
    assert judge(runs, "accuracy", "", "cifar10/a", arguments=share)[:3] == ("80.00%", "80.00% to 80.00%", DOES_NOT)
    but = judge(runs, "accuracy", "", "cifar10/a", arguments=share, reservation="another class")
    assert but.verdict == CANNOT_TELL and but.how.endswith("seeds 0, 1, 2; another class")
    assert judge(runs, "accuracy", "0.60", "cifar10/a", arguments={"epoch": 1}).ours == "60.00%"
    assert judge(runs, "accuracy", "0.60", "cifar10/a", arguments={"epoch": 2}).verdict == NOT_YET


def test_one_seed_decides_only_what_is_far_off(tmp_path):
    runs = save(tmp_path, make_run("cifar10/a", range(200), n=250))
    low, high = intervals.wilson(200, 250)
    found = judge(runs, "accuracy", "0.80", "cifar10/a")
    assert found[:3] == ("80.00%", f"{low:.2%} to {high:.2%}", CANNOT_TELL)
    assert judge(runs, "accuracy", "0.96", "cifar10/a").verdict == DOES_NOT
    low, high = intervals.wilson(round(0.6 * 8), 8)
    found = judge(runs, "accuracy", "0.60", "cifar10/a", arguments={"epoch": 1})
    assert found.interval == f"{low:.2%} to {high:.2%}", "of the eight validation images"


def test_only_full_runs_on_real_images_count(tmp_path):
    runs = save(
        tmp_path,
        make_run("cifar10/a", [], source="sample"),
        make_run("cifar10/b", [], stopped="time budget"),
        make_run("cifar10/c", [], profile="quick"),
        make_run("cifar100/d", [], stopped="no better accuracy", report="zoo"),
    )
    assert [record["experiment"] for record in runs.records] == ["cifar100/d"]
    again = Runs(tmp_path, results.load_all(tmp_path))
    assert again.records == runs.records, "records that were read already are filtered the same"


def test_sizes_of_data_come_from_a_record(tmp_path):
    sizes = {"kind": "count", "measure": "images", "data": "cifar10", "arguments": {"splits": ["train", "test"]}}
    rows = {
        "all": Statement("amp", "here", "so", "60,000", **sizes),
        "class": Statement("amp", "here", "so", "6,000", **(sizes | {"measure": "images of a class"})),
        "sides": Statement("amp", "", "so", "32x32", "structure", "sides", {"sign": "x"}, data="cifar10"),
        "other": Statement("amp", "here", "so", "60,000", **(sizes | {"data": "cifar100"})),
        "part": Statement(
            "amp", "", "so", "58", "count", "recorded images", {"splits": ["train", "val"]}, data="cifar10_tenth"
        ),
    }
    assert find(rows["all"], save(tmp_path)).verdict == NOT_YET
    runs = save(tmp_path, make_run("cifar10_tenth/a", []))
    assert find(rows["all"], runs)[:3] == ("60,000", "", HOLDS)
    assert find(rows["other"], runs).verdict == NOT_YET
    assert {name: find(rows[name], runs).verdict for name in ("class", "sides", "part")} == dict.fromkeys(
        ("class", "sides", "part"), HOLDS
    )


PAIR = ("cifar10/a", "cifar10/b")


def test_a_comparison_uses_the_seeds_that_both_have(tmp_path):
    runs = save(tmp_path, make_run("cifar10/a", range(10)), make_run("cifar10/b", [], seed=1))
    assert judge(runs, "comparison", "", *PAIR).verdict == NOT_YET
    found = judge(save(tmp_path, make_run("cifar10/b", [])), "comparison", "", *PAIR)
    assert found.ours == "+100.00 points (10 : 0 images), p = 0.002" and found.verdict == CANNOT_TELL
    assert found.how == "runs of cifar10/a and cifar10/b, seed 0"
    runs = save(tmp_path, make_run("cifar10/a", range(10), seed=1))
    found = judge(runs, "comparison", "", *PAIR)
    assert found.verdict == HOLDS and found.how.endswith("seeds 0, 1")
    found = judge(runs, "comparison", "", *PAIR, reservation="they differ in depth too")
    assert found.verdict == CANNOT_TELL and found.how.endswith("seeds 0, 1; they differ in depth too")


def pair_of(name, **more):
    """Two seeds of two experiments, the first of which is always right and the second never."""
    return [make_run(f"{name}/{who}", right, seed, **more) for who, right in (("a", range(10)), ("b", [])) for seed in (0, 1)]


def test_a_run_longer_than_planned_decides_nothing(tmp_path, monkeypatch):
    planned = replace(experiments.EXPERIMENTS["cifar10/slim_resnet"], name="cifar10/a")
    monkeypatch.setitem(experiments.EXPERIMENTS, "cifar10/a", planned)
    runs = save(tmp_path, *(make_run("cifar10/a", range(10), seed, epochs=160) for seed in (0, 1)))
    found = judge(runs, "accuracy", "1.00", "cifar10/a")
    assert found.verdict == CANNOT_TELL and found.how.endswith("seeds 0, 1; 200% of the epochs")


def test_seeds_on_other_images_are_not_judged_together(tmp_path):
    other = [make_run(f"cifar10/{name}", right, seed=1, n=12) for name, right in (("a", range(12)), ("b", []))]
    for record, _ in other:
        record["dataset"]["fingerprint"] = "cd"
    found = judge(save(tmp_path, *pair_of("cifar10")[::2], *other), "comparison", "", *PAIR)
    assert found.verdict == CANNOT_TELL and found.how == "runs of cifar10/a and cifar10/b, seed 0"


def test_runs_on_other_data_do_not_stand_in(tmp_path):
    runs = save(tmp_path, *pair_of("cifar10_tenth"))
    assert judge(runs, "accuracy", "1.00", "cifar10/a").verdict == NOT_YET
    assert judge(runs, "comparison", "", *PAIR).verdict == NOT_YET


@pytest.mark.parametrize(
    ("kind", "quoted", "names", "arguments", "verdict"),
    [
        ("accuracy", "1.00", PAIR[:1], {}, HOLDS),
        ("accuracy", "0.50", PAIR[:1], {}, DOES_NOT),
        ("loss", "0.50", PAIR[:1], {}, HOLDS),
        ("comparison", "", PAIR, {}, HOLDS),
        ("comparison", "", PAIR[::-1], {}, DOES_NOT),
        ("closeness", "", PAIR, {"margin": 0.05, "why": "ours"}, DOES_NOT),
        ("lower loss", "", PAIR, {}, HOLDS),
        ("each epoch", "", PAIR[:1], {}, HOLDS),
        ("cost", "", PAIR, {}, HOLDS),
    ],
)
def test_a_reservation_or_a_stand_in_leaves_every_verdict_on_runs_open(
    tmp_path, monkeypatch, kind, quoted, names, arguments, verdict
):
    slow = [{"val_accuracy": 0.6, "val_loss": 0.5, "train_accuracy": 0.5, "train_seconds": 2.0}]
    both = [make_run("cifar10/a", range(10), seed, loss=0.4, history=slow, device="NVIDIA T4") for seed in (0, 1)]
    runs = save(tmp_path, *both, *(make_run("cifar10/b", [], seed, device="NVIDIA T4") for seed in (0, 1)))
    assert judge(runs, kind, quoted, *names, arguments=arguments).verdict == verdict
    assert judge(runs, kind, quoted, *names, arguments=arguments, reservation="but").verdict == CANNOT_TELL
    monkeypatch.setattr(claims.runs, "stand_in", lambda runs: "half of the epochs")
    assert judge(runs, kind, quoted, *names, arguments=arguments).verdict == CANNOT_TELL


def test_a_shortened_schedule_decides_nothing(tmp_path, monkeypatch):
    plan = experiments.EXPERIMENTS["cifar10/slim_resnet"]
    for name, epochs in (("a", 80), ("b", 320)):
        planned = replace(plan, name=f"cifar10/{name}", recipe=replace(plan.recipe, epochs=epochs))
        monkeypatch.setitem(experiments.EXPERIMENTS, planned.name, planned)
    short = [
        make_run(f"cifar10/{name}_{epochs}ep", right, seed, epochs=epochs)
        for name, epochs, right in (("a", 4, range(10)), ("b", 16, []), ("b", 32, []))
        for seed in (0, 1)
    ]
    runs = save(tmp_path, *short)
    found = judge(runs, "comparison", "", *PAIR)
    assert found.verdict == CANNOT_TELL, "of the same share of both schedules"
    assert found.how == "runs of cifar10/a_4ep and cifar10/b_16ep, seeds 0, 1; 5% of the epochs"
    found = judge(runs, "accuracy", "1.00", "cifar10/a")
    assert found.verdict == CANNOT_TELL and found.how.endswith("5% of the epochs")
    more = {"epochs": 4, "schedule": "constant"}
    constant = save(tmp_path / "constant", *(make_run("cifar10/a_4ep", range(10), seed, **more) for seed in (0, 1)))
    first = judge(constant, "accuracy", "0.60", "cifar10/a", arguments={"epoch": 1})
    assert first.verdict == HOLDS, "with a constant rate, the first epoch of four is the first of eighty"
    whole = [
        make_run(f"cifar10/{name}", right, seed, epochs=80 if name == "a" else 320)
        for name, right in (("a", range(10)), ("b", []))
        for seed in (0, 1)
    ]
    assert judge(save(tmp_path, *whole), "comparison", "", *PAIR).verdict == HOLDS


def test_a_time_budget_other_than_the_reports_decides_nothing(tmp_path):
    stopped = {"report": "zoo", "stopped": "time budget of 7200 s", "time_budget": 7200.0}
    found = judge(save(tmp_path, *pair_of("cifar100", **stopped)), "comparison", "", "cifar100/a", "cifar100/b")
    assert found.verdict == CANNOT_TELL and found.how.endswith("stopped before six hours")
    early = pair_of("cifar100", report="zoo", stopped="no better accuracy", time_budget=7200.0)
    assert judge(save(tmp_path, *early), "comparison", "", "cifar100/a", "cifar100/b").verdict == HOLDS


def test_losses_epochs_and_costs_are_compared_run_by_run(tmp_path):
    row = {"val_loss": 0.5, "train_accuracy": 0.65}
    slow = [row | {"val_accuracy": 0.7, "val_loss": loss, "train_seconds": last} for loss, last in ((9.0, 2.0), (0.5, 2.2))]
    fast = [row | {"val_accuracy": value, "train_seconds": 1.0} for value in (0.6, 0.8)]
    for seed in (0, 1):
        slower = make_run("cifar10/a", [0], seed, loss=0.4, history=slow, device="NVIDIA T4")
        save(tmp_path, slower, make_run("cifar10/b", [0], seed, history=fast, device="NVIDIA T4"))
    runs = Runs(tmp_path)
    assert judge(runs, "lower loss", "", *PAIR)[:3] == ("-0.1000", "-0.1000 to -0.1000", HOLDS)
    assert judge(runs, "each epoch", "", *PAIR)[:3] == ("in 2 of 4 epochs", "", DOES_NOT)
    assert judge(runs, "each epoch", "", "cifar10/a")[:3] == ("in 4 of 4 epochs", "", HOLDS)
    assert judge(runs, "cost", "", *PAIR)[:3] == ("×2.10", "×2.00 to ×2.20", HOLDS)
    assert judge(runs, "loss", "0.50", "cifar10/a")[:3] == ("0.5000", "0.5000 to 0.5000", HOLDS)
    many = [slow[0] | {"train_seconds": float(seconds)} for seconds in (1, 2, 3, 4, 9)]
    for name, device in (("d", "NVIDIA T4"), ("e", "CPU, 1 threads"), ("f", "CPU, 1 threads")):
        save(tmp_path, make_run(f"cifar10/{name}", [0], history=many if name < "f" else fast, device=device))
    runs = Runs(tmp_path)
    assert judge(runs, "cost", "", "cifar10/d", "cifar10/b")[:3] == ("×3.00", "×2.00 to ×4.00", HOLDS)
    assert judge(runs, "cost", "", "cifar10/e", "cifar10/f")[1:3] == ("×2.00 to ×4.00; needs runs on a GPU", CANNOT_TELL)
    runs_of_d = save(tmp_path, make_run("cifar10/g", [0], history=many, device="NVIDIA T4"))
    varying = judge(runs_of_d, "cost", "", "cifar10/d", "cifar10/g")  # quartiles of both: 2, 3 and 4 s
    assert varying[:3] == ("×1.00", "×0.50 to ×2.00", CANNOT_TELL)
    close = judge(runs, "closeness", "", *PAIR, arguments={"margin": 0.05, "why": "ours"})
    assert close[:3] == ("+0.00 points", "+0.00 to +0.00 points", HOLDS) and close.how.endswith("margin 5.00 points, ours")
    assert judge(runs, "cost", "", "cifar10/e", "cifar10/a").verdict == NOT_YET, "on another device"


def test_quoted_accuracies_match_the_plan():
    """Both were copied from the reports; where they differ, one was copied wrong."""
    compared = 0
    for row in claims.statements():
        planned = experiments.EXPERIMENTS.get(row.experiments[0] if row.experiments else "")
        if row.kind == "accuracy" and not row.arguments and planned and "test_accuracy" in planned.reported:
            low, high = intervals.fraction_range(row.quoted)
            values = np.atleast_1d(planned.reported["test_accuracy"])
            assert low <= values.min() and values.max() <= high, row
            compared += 1
    assert compared >= 7


def test_every_row_has_a_place_a_rule_and_a_value():
    statements = claims.statements()
    rows = [(row.report, row.place, row.claim) for row in statements]
    assert len(set(rows)) == len(rows) >= 70
    assert {row.report for row in statements} == {"pikachu", "amp", "zoo", "slim"}
    assert {row.kind for row in statements} == set(findings.KINDS)
    assert {row.recipe for row in statements} == {"", "as written", "as coded"}
    assert all(row.quoted and (row.how() or "per_cent" in row.arguments) and "  " not in row.claim for row in statements)
    places = {row.place for row in statements if not row.repeats}
    assert all(row.repeats.split(",")[0] in places for row in statements if row.repeats)
    known = measures.OF_NETWORKS | measures.OTHERS
    used = {row.measure for row in statements if row.measure}
    assert used == set(known), "every measure is used, and every one that is used is there"
    assert {row.kind for row in statements if row.experiments} == set(claims.TRAINED)


def test_the_key_states_the_rule_of_every_kind():
    key = claims.key()
    for kind, (_, rule) in findings.KINDS.items():
        assert f"- **{kind}**: {' '.join(rule.__doc__.split())}" in key
    assert all(f"*{verdict}*" in key for verdict in claims.VERDICTS)


def test_the_committed_table_matches_a_recomputed_one():
    table = claims.claims_table()
    assert list(table.columns) == claims.COLUMNS
    assert set(table["verdict"]) <= set(claims.VERDICTS)
    written = (results.RESULTS / "claims.csv").read_text(encoding="utf-8")
    assert written == table.to_csv(index=False), "run python -m helpers table"
    assert (results.RESULTS / "tables" / "claims_key.md").read_text(encoding="utf-8") == claims.key()


def test_the_table_command_writes_the_claims(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "write", lambda records, folder: [])
    assert main(["table", "--results-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["README.md", "claims.csv", "claims_key.md"]
    rows = (tmp_path / "claims.csv").read_text().splitlines()
    assert len(rows) == len(claims.statements()) + 1 and rows[0] == ",".join(claims.COLUMNS)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(claims.table, "statements", lambda: [])
    with pytest.raises(UserError, match="claims could not be written"):
        claims.write(tmp_path / "file")


def test_the_summary_counts_every_fact_once_and_splits_holds_into_two_columns():
    rows = [
        ("zoo", "accuracy", NOT_YET, ""),
        ("zoo", "count", HOLDS, ""),
        ("amp", "comparison", HOLDS, ""),
        ("zoo", "loss", HOLDS, ""),
        ("zoo", "count", HOLDS, "Table 1"),
    ]
    counted = claims.counts(pd.DataFrame(rows, columns=["report", "kind", "verdict", "repeats"]))
    trained, arithmetic = "holds (trained networks)", "holds (counts and arithmetic)"
    assert list(counted.columns) == ["report", "statements", trained, arithmetic, *claims.VERDICTS[1:]]
    assert counted[["report", "statements", trained, arithmetic, NOT_YET, DOES_NOT]].values.tolist() == [
        ["zoo", 3, 1, 1, 1, 0],
        ["amp", 1, 1, 0, 0, 0],
        ["all", 4, 2, 1, 1, 0],
    ]
