"""What is told: tables and pictures of the runs; `claims`, `diagrams`, `landscape` and `statistics` by name."""

from helpers.report import claims, diagrams, landscape, statistics
from helpers.report.pictures import image_grid, middle, overlay, probability_bars, stamp
from helpers.report.plots import (
    accuracy_against_cost,
    accuracy_chart,
    confusion_matrices,
    curves,
    loss_around,
    model_style,
    search_heat_map,
    stage_bars,
)
from helpers.report.reported import headline_table, reported_table
from helpers.report.tables import (
    as_text,
    comparison_table,
    most_confused,
    paired_table,
    runs_table,
    styled,
    superclass_confusion,
    superclass_table,
    superclasses,
    time_table,
)

__all__ = [
    "accuracy_against_cost",
    "accuracy_chart",
    "as_text",
    "claims",
    "comparison_table",
    "confusion_matrices",
    "curves",
    "diagrams",
    "headline_table",
    "image_grid",
    "landscape",
    "loss_around",
    "middle",
    "model_style",
    "most_confused",
    "overlay",
    "paired_table",
    "probability_bars",
    "reported_table",
    "runs_table",
    "search_heat_map",
    "stage_bars",
    "stamp",
    "statistics",
    "styled",
    "superclass_confusion",
    "superclass_table",
    "superclasses",
    "time_table",
]
