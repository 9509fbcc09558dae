"""What the four reports say, statement by statement, and what the code and the runs say to it."""
# ruff: noqa: F401 (the names that notebooks use)

from helpers.report.claims.findings import TRAINED
from helpers.report.claims.rules import CANNOT_TELL, NOT_YET, VERDICTS
from helpers.report.claims.table import COLUMNS, claims_table, counts, key, statements, write
