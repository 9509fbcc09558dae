"""What is told: tables and pictures of the runs; `claims`, `diagrams`, `landscape` and `statistics` by name."""

from helpers.report import claims, diagrams, landscape, statistics
from helpers.report.figures import drawn
from helpers.report.outcomes import SAMPLE, best_by_validation, outcome_table, pair_sentences
from helpers.report.perturbed import gradients, measure_first_steps, obtain_first_steps
from helpers.report.pictures import image_grid, middle, overlay, probability_bars, stamp
from helpers.report.plots import (
    Row,
    accuracy_against_cost,
    accuracy_chart,
    confusion_matrices,
    curves,
    loss_around,
    model_style,
    search_heat_map,
    stage_bars,
)
from helpers.report.printed import SLIM_LOG, amp_figure2, slim_rates, zoo_steps
from helpers.report.reported import headline_table, reported_table
from helpers.report.tables import (
    as_text,
    comparison_table,
    markdown,
    most_confused,
    on_whole_data,
    paired_table,
    runs_table,
    styled,
    superclass_confusion,
    superclass_table,
    superclasses,
    time_table,
)

__all__ = [
    "Row",
    "SAMPLE",
    "SLIM_LOG",
    "accuracy_against_cost",
    "accuracy_chart",
    "amp_figure2",
    "as_text",
    "best_by_validation",
    "claims",
    "comparison_table",
    "confusion_matrices",
    "curves",
    "diagrams",
    "drawn",
    "gradients",
    "headline_table",
    "image_grid",
    "landscape",
    "loss_around",
    "markdown",
    "measure_first_steps",
    "middle",
    "model_style",
    "most_confused",
    "obtain_first_steps",
    "on_whole_data",
    "outcome_table",
    "overlay",
    "pair_sentences",
    "paired_table",
    "probability_bars",
    "reported_table",
    "runs_table",
    "search_heat_map",
    "slim_rates",
    "stage_bars",
    "stamp",
    "statistics",
    "styled",
    "superclass_confusion",
    "superclass_table",
    "superclasses",
    "time_table",
    "zoo_steps",
]
