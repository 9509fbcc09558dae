"""The statements of the four reports, one by one, and what the code and the runs say about each."""
# ruff: noqa: F401 (re-exported for notebooks and other packages)

from helpers.report.claims.findings import TRAINED
from helpers.report.claims.rules import CANNOT_TELL, NOT_YET, VERDICTS
from helpers.report.claims.table import COLUMNS, claims_table, counts, key, statements, write
