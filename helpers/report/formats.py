"""Table formatting for notebooks and Markdown: how the numbers of each column are printed."""

import re
import zlib

import pandas as pd

SAMPLE = "SAMPLE, not a result: "
NOT_YET = "not yet run"

PRINTED = ("report", "mark", "elsewhere")  # accuracies that others print, or that we set ourselves
_FORMATS = {
    **dict.fromkeys(("val accuracy", "test accuracy", "flipped copy", "top-1", "top-5", "short recipe"), "{:.2%}"),
    **dict.fromkeys(("share", "probability", "sd", "low", "high"), "{:.1%}"),
    **dict.fromkeys(("points", "from", "to"), "{:+.1f}"),
    **dict.fromkeys(("seeds", "epochs", "epochs, short", "estimated", "only first right", "only second right"), "{:.0f}"),
    **dict.fromkeys(("parameters", "gradients", "images/s"), "{:,.0f}"),
    **dict.fromkeys(("minutes", "minutes, short"), "{:.1f}"),
    **{"val loss": "{:.4f}", "p": "{:.3f}", "million MACs": "{:,.1f}"},
}


def percent(value: float | tuple[float, float] | None) -> str:
    """A printed fraction, or a (low, high) range of them, as a percentage without added zeros; empty if there is none."""
    if isinstance(value, tuple):
        return f"{100 * value[0]:g}–{100 * value[1]:g}%"
    return "" if pd.isna(value) else f"{100 * value:.4g}%"


def _cell(column: str, value) -> str:
    if column in PRINTED and not isinstance(value, str):
        return percent(value)
    if isinstance(value, tuple):
        return " to ".join(_cell(column, part) for part in value)
    if isinstance(value, str):
        return value
    if column == "p" and value < 0.001:
        return "<0.001"
    return "" if pd.isna(value) else _FORMATS.get(column, "{}").format(value)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every number formatted as text; missing values become empty cells."""
    return pd.DataFrame({name: [_cell(name, value) for value in table[name]] for name in table.columns}, index=table.index)


def _is_text(values: pd.Series) -> bool:
    """Whether a column is left-aligned as text: most entries do not begin with a digit, or have a `_`, as file names do."""
    words = set(values) - {"", NOT_YET}
    are_texts = all(isinstance(word, str) for word in words)
    return are_texts and sum(bool(re.match(r"[-+×]?\d[^_]*$", word)) for word in words) < len(words) / 2


def styled(table: pd.DataFrame, caption: str, best: str | tuple[str, ...] = ()):
    """The table as a notebook's `HTML`: a caption, numbers as in `as_text`, the largest value of each `best` column in bold."""
    from IPython.display import HTML  # only in notebooks; unlike a `Styler`, it has no address that differs in every run

    bold = pd.DataFrame("", index=table.index, columns=table.columns)
    for column in (best,) if isinstance(best, str) else best:
        numbers = pd.to_numeric(table[column], errors="coerce")
        if numbers.count() > 1:
            bold.loc[numbers == numbers.max(), column] = "font-weight: bold"
    style = as_text(table).style.apply(lambda _: bold, axis=None).hide(axis="index").set_caption(caption)
    left = [{"selector": "", "props": "text-align: left"}]
    style = style.set_table_styles({name: left for name in table.columns if _is_text(table[name])})
    style = style.set_table_styles([{"selector": "caption", "props": "text-align: left; white-space: nowrap"}], overwrite=False)
    return HTML(style.set_uuid(f"{zlib.crc32(caption.encode()):x}").to_html())  # a random id would change in every run


def markdown(table: pd.DataFrame) -> str:
    """The table in GitHub's Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *as_text(table).itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
