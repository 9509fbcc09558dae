"""Reporting: tables and figures of the runs; `claims`, `diagrams`, `landscape` and `statistics` are used as modules."""
# ruff: noqa: F401 (re-exported for notebooks and other packages)

from helpers.report import claims, diagrams, landscape, statistics
from helpers.report.claims.measures import amp_curves
from helpers.report.figures import drawn
from helpers.report.formats import SAMPLE, as_text, markdown, styled
from helpers.report.perturbed import gradients, measure_first_steps, obtain_first_steps
from helpers.report.pictures import image_grid, probability_bars, stamp
from helpers.report.plots import accuracy_against_cost, accuracy_chart, confusion_matrices, curves, loss_around, stage_bars
from helpers.report.printed import amp_figure2, slim_rates, zoo_steps
from helpers.report.readme import headline_table
from helpers.report.tables import full_runs, outcome_table, pair_sentences, paired_table, runs_table, short_recipes
