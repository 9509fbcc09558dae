"""The claims table: every statement of the reports beside what the code and the run records say, each with its verdict."""

import inspect
from pathlib import Path

import pandas as pd

from helpers import runtime
from helpers.experiments import records as results
from helpers.report.claims import CLAIMS, verdicts
from helpers.report.claims.evidence import Evidence
from helpers.runtime import UserError

COLUMNS = ["report", "place", "claim", "quoted", "kind", "how", "ours", "interval", "verdict"]


def claims_table(results_dir: str | Path | None = None) -> pd.DataFrame:
    """A row a statement, all cells text: what the report says, how it is checked, what comes out, and the verdict.

    Raises:
        UserError: a run record is damaged.
    """
    evidence = Evidence(results_dir)
    rows = []
    for claim in CLAIMS:
        found = claim.find(evidence)
        stated = (claim.report, claim.place, claim.claim, claim.quoted, claim.check.kind)
        rows.append((*stated, found.how, found.ours, found.interval, found.verdict))
    return pd.DataFrame(rows, columns=COLUMNS)


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """A row a report and a last one for all: how many statements it makes, and how many have each verdict."""
    counted = pd.crosstab(table["report"], table["verdict"]).reindex(
        index=list(dict.fromkeys(table["report"])), columns=list(verdicts.VERDICTS), fill_value=0
    )
    counted.loc["all"] = counted.sum()
    counted.insert(0, "in all", counted.sum(axis=1))
    return counted.rename_axis(index="statements of", columns=None).reset_index()


def key() -> str:
    """The key to the table, in Markdown: its verdicts, and for each kind of statement the rule that gives one."""
    lines = [
        "# How a verdict comes about",
        "",
        "Each row of [claims.csv](../claims.csv) is a statement of a report, at its place, with the value printed there. Its",
        "verdict is computed from `ours` and `interval` by the rule of its `kind`, and is never typed in. It is about the",
        "statement and not about its authors, who wrote down what they did, which is why it can be checked at all.",
        "",
        f"The verdicts are {', '.join(f'*{verdict}*' for verdict in verdicts.VERDICTS)}. *Not yet run* means that",
        "the model or the full run on real images that the check needs is not there; the verdict turns by itself when it is",
        "(`python -m helpers table`). A printed number stands for all values that round to it; accuracies printed as 0.91,",
        "91 % and 91 are the same.",
        "",
    ]
    for kind, rule in verdicts.RULES.items():
        lines.append(f"- **{kind}**: {' '.join(inspect.getdoc(rule).split())}")
    lines += [
        "",
        "Sources: Wilson 1927, JASA 22, 209–212; McNemar 1947, Psychometrika 12, 153–157; Connor 1987, Biometrics 43, 207–211;",
        "Guenther 1981, The American Statistician 35, 243–244; Fleiss, Levin and Paik 2003, Statistical Methods for Rates and",
        "Proportions, chapter 3; Chow, Shao and Wang 2008, Sample Size Calculations in Clinical Research, section 4.2.",
    ]
    return "\n".join(lines) + "\n"


def write(results_dir: str | Path | None = None) -> list[Path]:
    """Rebuild `R/claims.csv` and its key, `R/tables/claims_key.md`.

    Raises:
        UserError: a run record is damaged, or the folder cannot be written.
    """
    folder = Path(results_dir or results.RESULTS).expanduser()
    texts = {
        folder / "claims.csv": claims_table(folder).to_csv(index=False),
        folder / "tables" / "claims_key.md": key(),
    }
    try:
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            runtime.save_text(path, text)
    except OSError as error:
        raise UserError(f"The claims could not be written ({error.strerror}); choose another --results-dir.") from error
    return list(texts)
