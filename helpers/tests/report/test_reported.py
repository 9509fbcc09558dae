"""The reports' numbers beside ours: from the plan and the records alone."""

from dataclasses import replace

import pytest

from helpers.experiments import EXPERIMENTS
from helpers.report import readme, tables
from helpers.tests.experiments.test_results import make_run


def row(table, experiment):
    return table.set_index("experiment").loc[experiment].to_dict()


def test_every_accuracy_that_a_report_prints_has_a_row_before_anything_is_run():
    table = readme.reported_table([])
    printed = {name for name, planned in EXPERIMENTS.items() if "test_accuracy" in planned.reported}
    coded = {name for names in tables.CODED.values() for name in names}
    assert set(table["experiment"]) == printed | coded and len(table) == len(printed | coded)
    assert set(table["ours"]) == {"not yet run"} and len(table.columns) <= 9
    assert list(dict.fromkeys(table["report"])) == list(tables.REPORTS)
    assert row(table, "cifar10/resnext29_under5m_amp")["printed"] == "90–91%"


def test_runs_as_written_fill_their_row():
    runs = [make_run(seed=0)[0], make_run(seed=1, predicted=(0, 0, 0, 1, 1))[0]]  # 80 and 100 %
    found = row(readme.reported_table(runs), "pikachu/resnext50_ours")
    assert found["ours"] == "90.0 ± 14.1%" and found["seeds"] == 2
    assert (found["printed"], found["same data?"]) == ("79.46%", "yes")
    assert found["same schedule?"] == "as written, epochs from its code"


def test_other_profiles_do_not_count():
    assert set(readme.reported_table([make_run(profile="quick")[0]])["ours"]) == {"not yet run"}


def test_a_run_stopped_by_its_time_budget_says_so():
    run = make_run("cifar100/wrn16_2", stopped="time budget of 60 s: 59 s spent after epoch 1, and no other fits")[0]
    run |= {"seconds": 7200.0, "limits": {"time_budget": 7200.0}}
    assert row(readme.reported_table([run]), "cifar100/wrn16_2")["same schedule?"] == "no, 120 minutes"
    run["limits"] = {"time_budget": 6 * 3600.0}
    stated = row(readme.reported_table([run]), "cifar100/wrn16_2")["same schedule?"]
    assert stated == "optimiser, rate and batch not stated", "six hours are the report's own budget"


def test_what_a_report_leaves_out_of_a_recipe_is_noted_beside_its_runs():
    names = "slim_resnet_trial1 resnet18_torchvision".split()
    table = readme.reported_table([make_run(f"cifar10/{name}")[0] for name in names])
    found = [row(table, f"cifar10/{name}")["same schedule?"] for name in names]
    assert found == ["epochs not stated", "no recipe stated"]
    coded = row(
        readme.reported_table([make_run("cifar10_5k/resnet18_coded_decay0001")[0]]), "cifar10_5k/resnet18_coded_decay0001"
    )
    assert coded["same schedule?"] == "as coded, no early stop, length of calls guessed, weight decay 0.001"


def test_a_shortened_run_fills_its_row_and_says_so(monkeypatch):
    name = "cifar10/resnext29_under5m_sgd"
    monkeypatch.setitem(EXPERIMENTS, f"{name}_1ep", EXPERIMENTS["cifar10/resnext29_under5m_sgd_same"])
    runs = [make_run(f"{name}_1ep")[0]]
    found = row(readme.reported_table(runs), f"{name}_1ep")
    assert (found["printed"], found["same schedule?"]) == ("89–90%", "no, 1 of 100 epochs")
    monkeypatch.setitem(EXPERIMENTS, "cifar10/slim_resnet_1ep", EXPERIMENTS["cifar10/slim_resnet_plain"])
    best = readme.headline_table([make_run("cifar10/slim_resnet_1ep")[0]]).iloc[3]
    assert best["ours, report's recipe"] == "80.00% (1 of 80 epochs, 1 seed)"


def test_the_headline_has_one_row_per_report_with_its_best_ours_and_the_best_published(monkeypatch):
    fast = make_run("pikachu/resnet18_fast", predicted=(0, 0, 0, 1, 1))[0] | {"seconds": 600.0}
    planned = replace(EXPERIMENTS["pikachu/resnet18_torchvision"], reported={})
    monkeypatch.setitem(EXPERIMENTS, "pikachu/resnet18_fast", planned)
    other = make_run("cifar10/resnext29_32x4d_fast", predicted=(0, 0, 0, 1, 1))[0]
    other["best"] = other["best"] | {"val_accuracy": 0.99}  # of the same report, on other data than its best accuracy
    table = readme.headline_table([fast, other]).set_index("report")
    assert [index.split("`")[1] for index in table.index] == list(tables.REPORTS) and len(table.columns) <= 8
    first = table.iloc[0]
    assert first["report's best"].startswith("83.33%") and first["ours, report's recipe"] == "not yet run"
    assert first["ours, short recipe"] == "100.00% (resnet18_fast, 1 seed)" and first["minutes"] == "10"
    zoo = table.iloc[2]
    narrow, deep = make_run("cifar100/wrn16_2")[0], make_run("cifar100/wrn28_2")[0]
    instead = readme.headline_table([fast, narrow, deep]).iloc[2]["ours, report's recipe"]
    assert instead == "not yet run; wrn16_2: 80.00%, report 44.26%"
    short = [make_run("cifar100/wrn28_2_fast", seed)[0] | {"seconds": 1200.0 - 600 * seed} for seed in (0, 1)]
    short = [run | {"best": run["best"] | {"val_accuracy": 0.7}} for run in short]
    other = make_run("cifar100/wrn16_2_fast", predicted=(0, 0, 0, 1, 1))[0]  # all test images right, but fewer of validation
    chosen = readme.headline_table([other, *short]).iloc[2]
    assert (chosen["ours, short recipe"], chosen["minutes"]) == ("80.0 ± 0.0% (wrn28_2_fast, 2 seeds)", "10")
    shortened = readme.headline_table([make_run("cifar100/simplenet_10ep")[0]]).iloc[2]["ours, report's recipe"]
    assert zoo["ours, report's recipe"] == shortened == "not yet run", "SimpleNet is the best network itself"
    assert zoo["report's best"].startswith("63.56%") and zoo["published elsewhere"].startswith("[78.37%](https://")
    assert table.iloc[3]["published elsewhere"] == "[96.04%](https://arxiv.org/abs/2306.12100)"


@pytest.mark.parametrize("table", [tables.ELSEWHERE, tables.CODED, readme.NETWORKS, readme.OPEN])
def test_tables_about_networks_name_only_networks_in_the_plan(table):
    known = {(planned.dataset, planned.model) for planned in EXPERIMENTS.values()} | set(EXPERIMENTS)
    if table is tables.ELSEWHERE:
        assert all(0.5 < accuracy < 1 and source for accuracy, source in table.values())
        assert {model for _, model in table} <= {planned.model for planned in EXPERIMENTS.values()}
    else:
        assert set(table) <= known
