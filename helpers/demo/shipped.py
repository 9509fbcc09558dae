"""Models that come with the repository, each with a model card: ship, find and evaluate them."""

import os
from pathlib import Path

import torch
from scipy.stats import binomtest

from helpers import data, training
from helpers.demo.saved import SavedModel, best_weights, build_network, load_model, save_model
from helpers.experiments import records
from helpers.runtime import ROOT, UserError, require, save_text

MODELS = ROOT / "results" / "models"
LARGEST = 24  # MiB of a file
OPTIMISER = ("optimizer", "momentum")  # listed on the card even if they are the defaults
AGREEMENT = 0.999  # share of test images on which half and full precision must agree
LIMITS = {  # known limits of a data set, as notebooks 01 and 04 find them, by the fingerprint of its images
    "5b74394de064d3cf": "Seven of the 258 test photographs are also in training. None of the 146 files of 120 × 120 pixels "
    "shows Pikachu, and 130 of them are on black, so any small figure on black may be called *not Pikachu*.\n",
}


def ship(record: dict, checkpoint_dir: str | Path | None, data_dir: str | Path | None, results_dir: str | Path | None) -> Path:
    """Write the model of a recorded run in half precision, and its card beside it; returns the model's path.

    Raises UserError if its checkpoint is gone, it was trained on generated images, or it is too large.
    """
    name = record["experiment"].replace("/", "-")
    weights, about = best_weights(record, checkpoint_dir)
    require(not about.sample, f"{record['experiment']} was trained on generated images; ship a run on real ones.")
    size = sum(value.numel() * (2 if value.dim() > 1 else 4) for value in weights.values()) / 2**20
    require(size <= LARGEST, f"{name} takes {size:.0f} MiB; at most {LARGEST} are shipped, choose a smaller network.")
    facts = {key: record[key] for key in ("experiment", "profile", "seed", "dataset", "recipe", "test", "best")}
    model = SavedModel(build_network(weights, about, name), about, facts)
    facts["predicted"] = _predict(model, data_dir)[0].tolist()  # the record's own may come from mixed precision
    path = save_model(MODELS / f"{name}.safetensors", weights, about, facts)
    write_card(path, results_dir)
    return path


def write_card(path: Path, results_dir: str | Path | None = None) -> Path:
    """Write a shipped model's card, from its file and the records of its experiment; a UserError if its own run is gone.

    The card gives the accuracy in full precision, in which a saved model is used, the optimiser and all settings that are
    not the defaults.
    """
    model = load_model(path)
    require(model.card, f"{path.name} has no model card; save it with python -m helpers save EXPERIMENT, or remove it.")
    record = records.load(records.record_path(*(model.card[key] for key in ("experiment", "profile", "seed")), results_dir))
    again = f"{path.name} does not belong to the recorded run; save the model again, or remove it."
    require((record["test"], record["best"]) == (model.card["test"], model.card["best"]), again)
    right, n = int((records.predictions(record, results_dir)["true"] == model.card["predicted"]).sum()), record["test"]["n"]
    runs = [one for one in records.load_all(results_dir, record["profile"]) if one["experiment"] == record["experiment"]]
    recipe, plain = training.completed(record["recipe"]), training.completed({"sizes": []})  # records store tuples as lists
    side, stored = model.about.image_size, model.about.stored_size
    used = {key: value for key, value in recipe.items() if key in OPTIMISER or value != plain.get(key)}
    facts = {
        "classes": len(model.about.classes),
        "accuracy": right / n,
        "interval": binomtest(right, n).proportion_ci(0.95, "wilson"),
        "seeds": ", ".join(f"seed {one['seed']}: {one['test']['accuracy']:.2%}" for one in runs),
        "settings": ", ".join(f"{key} {value}" for key, value in used.items()),
        "size": path.stat().st_size / 2**20,
        "input": f"{side} × {side} pixels{'' if side == stored else f', the middle of {stored} × {stored}'}",
        "known": LIMITS.get(record["dataset"]["fingerprint"], ""),
    }
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    save_text(path.with_suffix(".md"), template.format(name=path.stem, **facts, **record))
    return path.with_suffix(".md")


def list_models() -> dict[str, Path]:
    """The shipped models by name, those trained on photographs first."""
    found = sorted(MODELS.glob("[!.]*.safetensors"), key=lambda path: (not path.stem.startswith("pikachu-"), path.stem))
    return {path.stem: path for path in found}


def find_model(name: str | Path | None = None) -> Path:
    """The path of a shipped model or a file; by default the first of `list_models`. Raises UserError if there is none."""
    known = list_models()
    name = next(iter(known), None) if name is None else str(name)
    require(name is not None, "No model comes with this copy; name one of your own with --model FILE.")
    if name in known:
        return known[name]
    path = Path(os.path.expanduser(name))
    if path.name == str(path) and not path.suffix and not os.path.exists(path):  # also if the name is too long for a file
        raise UserError(f"There is no model '{name}'; choose one of {', '.join(known) or 'your own files'}, or give a file.")
    return path


def evaluate(name: str, data_dir: str | Path | None = None, device: str | None = None) -> str:
    """Recompute a model's accuracy on the data at hand and compare it with that of its run; returns the result as text.

    Raises UserError if it has no card, the data differ, or half and full precision disagree on too many test images.
    """
    model = load_model(find_model(name), device)
    require(model.card, f"{name} has no model card to compare with; choose one of {', '.join(list_models())}.")
    predicted, labels = _predict(model, data_dir)
    accuracy = (predicted == labels).double().mean().item()
    agreement = (predicted == torch.tensor(model.card["predicted"])).double().mean().item()
    result = f"{name}: {accuracy:.2%} of {len(labels):,} test images; its run got {model.card['test']['accuracy']:.2%}."
    result += f" {agreement:.2%} of its answers agree with full precision."
    require(agreement >= AGREEMENT, f"{result} That should be {AGREEMENT:.1%} or more: save the model again.")
    return result


def _predict(model: SavedModel, data_dir: str | Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """A model's answers on the test images that its card names, in full precision, and the labels."""
    card, about = model.card, model.about
    dataset = data.load(card["dataset"]["name"], data_dir, image_size=about.image_size, resize=about.resize)
    if dataset.fingerprint != card["dataset"]["fingerprint"]:
        raise UserError(f"The model was tested on images other than those in the {dataset.source}, so it cannot be checked.")
    recipe = training.Recipe(**training.completed(card["recipe"]) | {"mixed_precision": False})
    return training.predict(model.network, dataset.test, recipe).argmax(1), dataset.test.labels
