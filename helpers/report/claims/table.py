"""The claims table: every statement of the reports beside what the code and the run records say, each with its verdict."""

import inspect
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from helpers import runtime
from helpers.experiments import records as results
from helpers.report.claims import findings, measures, rules
from helpers.report.claims.runs import Runs
from helpers.report.tables import REPORTS

COLUMNS = "report,place,claim,quoted,recipe,kind,how,ours,interval,verdict,repeats".split(",")
BY_TRAINING, BY_ARITHMETIC = "holds (trained networks)", "holds (counts and arithmetic)"


def statements() -> list[findings.Statement]:
    """The statements of the four reports, in each report's order. A new one needs only a row in its report's file."""
    rows = []
    for report in REPORTS:
        text = (measures.STATEMENTS / f"{report}.toml").read_text(encoding="utf-8")
        rows += [findings.Statement(report, **row) for row in tomllib.loads(text)["statement"]]
    return rows


def claims_table(results_dir: str | Path | None = None, records: Iterable[dict] | None = None) -> pd.DataFrame:
    """One row per statement, all cells text: what the report says, how it is checked, what comes out, and the verdict."""
    runs = Runs(results_dir, records)
    rows = [vars(statement) | findings.find(statement, runs)._asdict() for statement in statements()]
    return pd.DataFrame(rows, columns=COLUMNS)


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """One row per report and a last one for all: how many statements it makes, without repeats, and how many per verdict."""
    table = table[table["repeats"] == ""]
    trained = table["kind"].isin(findings.TRAINED).map({True: BY_TRAINING, False: BY_ARITHMETIC})
    verdicts = table["verdict"].where(table["verdict"] != rules.HOLDS, trained)
    columns = [BY_TRAINING, BY_ARITHMETIC, *rules.VERDICTS[1:]]
    counted = pd.crosstab(table["report"], verdicts).reindex(index=table["report"].unique(), columns=columns, fill_value=0)
    counted.loc["all"] = counted.sum()
    counted.insert(0, "statements", counted.sum(axis=1))
    return counted.rename_axis(index="report", columns=None).reset_index()


def key() -> str:
    """The key to the table, in Markdown: its verdicts, and for each kind of statement the rule that gives one."""
    by_kind = (f"- **{kind}**: {' '.join(inspect.getdoc(rule).split())}" for kind, (_, rule) in findings.KINDS.items())
    text = (measures.STATEMENTS / "key.md").read_text(encoding="utf-8")
    return text.format(verdicts=", ".join(f"*{verdict}*" for verdict in rules.VERDICTS), rules="\n".join(by_kind))


def write(results_dir: str | Path | None = None, records: Iterable[dict] | None = None) -> list[Path]:
    """Rebuild `R/claims.csv` and its key, `R/tables/claims_key.md`; a UserError if the folder cannot be written."""
    folder = Path(results_dir or results.RESULTS).expanduser()
    table = claims_table(folder, records).to_csv(index=False)
    texts = {folder / "claims.csv": table, folder / "tables" / "claims_key.md": key()}
    with runtime.writing("The claims"):
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            runtime.save_text(path, text)
    return list(texts)
