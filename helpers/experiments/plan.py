"""The plan: one row per experiment, the most useful to run first.

`…_coded` rows follow the report's published code where it differs from its text. `…_8ep` and the like shorten a report's
recipe to that many epochs. Our own recipes are short (`…_fast`) or long (`…_long` and `…_strong`).
"""

import re
from dataclasses import dataclass, field, replace

from helpers.experiments import recipes
from helpers.training.recipe import Recipe

NETWORKS = {  # by the last part of a row's name, where that is not the network's name
    "resnet18_torchvision": "torchvision/resnet18",
    "resnext50_torchvision": "torchvision/resnext50_32x4d",
    "resnext50_ours": "resnext50_32x4d",
}


@dataclass(frozen=True)
class Experiment:
    """One row of the plan."""

    name: str
    report: str
    recipe: Recipe
    model: str
    dataset: str
    seeds: int = 1  # how many the plan wants: 0, 1, …
    pretrained: bool = False
    quick: int = 8  # epochs of the `quick` profile, if there is no `…_fast` row (`runner.recipe_for`)
    mark: float | None = None  # the test accuracy that a recipe of ours is meant to reach
    # What the report prints: accuracies as fractions, or (low, high) for a range; confusion matrix [[TN, FP], [FN, TP]].
    reported: dict = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether this is one of our `…_fast`, `…_long` or `…_strong` rows: their records have a mirrored accuracy too."""
        return self.report != "speed" and not {"fast", "long", "strong"}.isdisjoint(self.name.split("_"))


def row(name: str, report: str, recipe: Recipe, model: str | None = None, *, printed=None, **more) -> Experiment:
    """A row of the plan; if no model is given, the row's name determines its network.

    `printed` is the test accuracy, if that is all the report prints: a fraction, or a (low, high) range.
    """
    dataset, network = name.split("/")
    if printed is not None:
        more["reported"] = {"test_accuracy": printed}
    return Experiment(name, report, recipe, model or NETWORKS.get(network, network), dataset, **more)


def fast(name: str, report: str, epochs: int, peak: float, changes: dict | None = None, **more) -> Experiment:
    """A short recipe of ours: the rate warms up to `peak` over `epochs // 8` epochs, then falls linearly to zero."""
    dataset, network = name.split("/")
    length = {"epochs": epochs, "learning_rate": peak, "warmup_epochs": epochs // 8}
    recipe = replace(recipes.FAST, **recipes.STATISTICS[dataset] | length | (changes or {}))
    model = more.pop("model", re.sub(r"_(fast(_\d)?|long)$", "", network))
    return row(name, report, recipe, model, **{"quick": epochs} | more)


def gradient_arms() -> list[Experiment]:
    """Ways to spend 40 epochs' worth of gradients on one network, and plain SGD on half of them; a perturbed step takes two.

    Like the authors' own runs, the momentum arms have no Nesterov momentum; for WRN-16-4 on CIFAR-100 the authors use length 3.
    """
    arms = {"sgd": (20, {}), "sgd_twice": (40, {}), "sgd_twice_rate01": (40, {"learning_rate": 0.1})}  # each gets two tries
    for radius, text in ((0.05, "005"), (0.1, "01")):
        late = {"perturbation": radius, "perturbation_start": 0.75}
        arms |= {f"perturbed_radius{text}": (20, {"perturbation": radius}), f"perturbed_late_radius{text}": (32, late)}
    for length in (1, 3):
        arms[f"momentum_length{length}"] = (40, {"momentum_perturbation": float(length), "nesterov": False})
    shared = {"model": "wrn16_2", "seeds": 2}
    return [
        fast(f"cifar100/wrn16_2_{name}", "amp", epochs, 0.2, recipes.PLAIN_BLOCKS | changes, **shared, quick=epochs // 2)
        for name, (epochs, changes) in arms.items()
    ]


def priced_ingredients() -> list[Experiment]:
    """Two short recipes, 11 to 17 minutes and two hours of one CPU core with bf16, and variants without one ingredient."""
    without = {
        "warmup": {"warmup_epochs": 0},
        "linear": {"schedule": "cosine"},
        "resizing": {"sizes": (), "epochs": 7},  # takes as long as 12 with resizing, since its images are larger
        "alternating": {"flip": "random"},
        "reflection": {"border": "zero"},
        "cutout": {"cutout": 0},
        "smoothing": {"label_smoothing": 0.0},
        "ema": {"ema": None},
    }
    rows = {"wrn16_2_short": ("wrn16_2", recipes.PLAIN_BLOCKS)}
    for name, changes in without.items():
        rows[f"wrn16_2_short_without_{name}"] = ("wrn16_2", recipes.PLAIN_BLOCKS | changes)
    network = "zoo_resnext1_doubling"  # for the last BatchNorm of a block, which wide blocks do not have
    rows |= {f"{network}_short": (network, {}), f"{network}_short_without_zero": (network, recipes.PLAIN_BLOCKS)}
    return [fast(f"cifar10/{name}", "slim", 12, 0.2, changes, model=model) for name, (model, changes) in rows.items()]


PIKACHU_REPORTED = {
    "resnext50_ours": {"val_loss": 0.5021, "test_accuracy": 0.7946, "confusion": [[95, 34], [19, 102]]},
    "resnext50_torchvision": {"val_loss": 0.5047, "test_accuracy": 0.7752, "confusion": [[90, 39], [19, 102]]},
    "resnet18_torchvision": {"val_loss": 0.3917, "test_accuracy": 0.8333, "confusion": [[102, 29], [14, 102]]},
}
RESNET18, RESNEXT50, UNDER5M = "torchvision/resnet18", "torchvision/resnext50_32x4d", "resnext29_under5m"
ZOO_FIRST = ["wrn16_2", "zoo_resnext1", "zoo_resnext2", "zoo_resnext3", "zoo_resnext1_doubling", "zoo_resnext1_rectified"]
ZOO_FIRST += ["wrn28_2", "wrn16_4"]
ZOO_ROWS = {  # as the report trains them
    model: row(f"cifar100/{model}", "zoo", recipes.ZOO_SIMPLENET if model == "simplenet" else recipes.ZOO, printed=printed)
    for model, printed in recipes.ZOO_REPORTED.items()
}
CODED = replace(recipes.CIFAR10_5K_CODED, epochs=102)
DECAY0001, PHOTOGRAPHS_DECAY0001 = (replace(recipe, weight_decay=0.001) for recipe in (CODED, recipes.PIKACHU_CODED))
ROWS = [
    # The reports on their own data, the cheapest and most informative first.
    # The validation images of report `slim`, on which it picks the best epoch, are the test images.
    row("cifar10/resnet18_torchvision", "slim", recipes.SLIM_TRIAL, seeds=2, printed=0.78),
    row("cifar10/slim_resnet_trial1", "slim", recipes.SLIM_TRIAL, seeds=2, printed=0.77),
    row("cifar10/slim_resnet_trial2", "slim", recipes.SLIM_TRIAL, seeds=2, printed=0.77),
    row("cifar10/slim_resnet_trial3", "slim", recipes.SLIM_TRIAL, seeds=2, printed=0.84),
    row("cifar10/slim_resnet_trial2_coded", "slim", replace(recipes.SLIM_TRIAL, epochs=10, initialisation="torch"), seeds=2),
    *(ZOO_ROWS.pop(model) for model in ZOO_FIRST),
    row("cifar10_5k/resnext29_coded", "pikachu", replace(CODED, epochs=63), "pikachu_resnext29", seeds=2),
    row("cifar10_5k/resnet18_coded", "pikachu", CODED, RESNET18, seeds=2),
    # The default weight decay of its function: with the 0.1 that its call passes, hardly anything is learnt (10 and 18 %).
    row("cifar10_5k/resnet18_coded_decay0001", "pikachu", DECAY0001, RESNET18, seeds=2),
    row("cifar10_5k/resnext29_coded_decay0001", "pikachu", replace(DECAY0001, epochs=63), "pikachu_resnext29", seeds=2),
    row("cifar10_5k/resnext29_32x4d", "pikachu", recipes.CIFAR10_5K, seeds=2, printed=0.4506),
    row("cifar10_5k/resnet18_torchvision", "pikachu", recipes.CIFAR10_5K, seeds=2, printed=0.6638),
    row("pikachu/resnet18_coded", "pikachu", recipes.PIKACHU_CODED, RESNET18, seeds=2),
    row("pikachu/resnext50_coded", "pikachu", recipes.PIKACHU_CODED, "resnext50_unpadded", seeds=2),
    row("pikachu/resnext50_torchvision_coded", "pikachu", recipes.PIKACHU_CODED, RESNEXT50, seeds=2),
    # With 0.1, they learn nothing either, but the report's stored curve of the second reaches 82.6 %.
    row("pikachu/resnet18_coded_decay0001", "pikachu", PHOTOGRAPHS_DECAY0001, RESNET18, seeds=2),
    row("pikachu/resnext50_coded_decay0001", "pikachu", PHOTOGRAPHS_DECAY0001, "resnext50_unpadded", seeds=2),
    *(row(f"pikachu/{name}", "pikachu", recipes.PIKACHU, seeds=3, reported=known) for name, known in PIKACHU_REPORTED.items()),
    row(f"cifar10/{UNDER5M}_sgd_8ep", "amp", replace(recipes.AMP_SGD, epochs=8), UNDER5M),
    row(f"cifar10/{UNDER5M}_sgd_same_8ep", "amp", replace(recipes.AMP_SAME, epochs=8), UNDER5M),
    row(f"cifar10/{UNDER5M}_amp_8ep", "amp", replace(recipes.AMP_PERTURBED, epochs=8), UNDER5M),
    # On equally many images: 3 epochs with four copies of each, or 12 with one.
    row("cifar10/slim_resnet_3ep", "slim", replace(recipes.SLIM_FINAL, epochs=3), "slim_resnet"),
    row("cifar10/slim_resnet_plain_12ep", "slim", replace(recipes.SLIM_PLAIN, epochs=12), "slim_resnet", quick=12),
    row("cifar10/slim_resnet_crop_flip_12ep", "slim", replace(recipes.SLIM_CROPPED, epochs=12), "slim_resnet", quick=12),
    row("cifar10/slim_resnet_max_pool_3ep", "slim", replace(recipes.SLIM_FINAL, epochs=3), "slim_resnet_max_pool"),
    row("cifar10/slim_resnet_stride_second_3ep", "slim", replace(recipes.SLIM_FINAL, epochs=3), "slim_resnet_stride_second"),
    # The report also prints an accuracy after 10 of its 50 epochs.
    row("cifar100/simplenet_10ep", "zoo", replace(recipes.ZOO_SIMPLENET, epochs=10), "simplenet", printed=0.4834),
    # Ours, each in one sitting, by estimate: ten minutes on a T4, or half an hour to three hours on a CPU core with bf16.
    fast("cifar10/resnext29_under5m_fast", "amp", 16, 0.15, {"cutout": 0}, seeds=2, mark=0.93),
    # Second attempts: longer, and without cutout and zeroed BatchNorms, which cost accuracy in 12 epochs (notebook 06).
    fast("cifar10/resnext29_under5m_fast_2", "amp", 20, 0.2, recipes.LEAN, mark=0.93),
    fast("cifar10/wrn16_4_fast", "slim", 48, 0.2, recipes.PLAIN_BLOCKS, mark=0.945),
    fast("cifar10/slim_resnet_fast", "slim", 28, 0.15, mark=0.93),
    fast("cifar10/slim_resnet_fast_2", "slim", 48, 0.15, recipes.LEAN, mark=0.93),
    fast("cifar100/wrn16_2_fast", "zoo", 45, 0.2, recipes.PLAIN_BLOCKS, seeds=2, mark=0.7),
    fast("cifar100/wrn16_4_fast", "zoo", 36, 0.2, recipes.PLAIN_BLOCKS, mark=0.73),
    fast("cifar100/wrn28_2_fast", "zoo", 45, 0.2, recipes.PLAIN_BLOCKS, mark=0.72),
    # SimpleNet pools four times: to see any neighbours in its last layer, it needs 32 pixels.
    fast("cifar100/simplenet_fast", "zoo", 16, 0.1, recipes.LEAN | {"sizes": ((0.0, 16), (0.6, 32))}, mark=0.64),
    fast("cifar100/zoo_resnext1_doubling_fast", "zoo", 60, 0.2, recipes.LEAN, mark=0.45),
    fast("pikachu/resnet18_fast", "pikachu", 60, 0.05, recipes.PHOTOGRAPHS_FAST, mark=0.9),
    fast("pikachu/resnext50_fast", "pikachu", 40, 0.05, recipes.PHOTOGRAPHS_FAST, model="resnext50_32x4d"),
    # What each ingredient of a short recipe contributes, and perturbation at equal numbers of gradients.
    *priced_ingredients(),
    *gradient_arms(),
    fast("cifar10/slim_resnet_strong_fast", "slim", 16, 0.15, recipes.LEAN),
    fast("cifar10/resnext29_32x4d_fast", "pikachu", 16, 0.15, recipes.LEAN),
    fast("cifar100/wrn28_4_fast", "zoo", 16, 0.2, recipes.PLAIN_BLOCKS),
    fast("cifar100/res2next29_6c24w4s_fast", "zoo", 6, 0.1, recipes.LEAN | {"warmup_epochs": 1, "ema": 0.99}),
    fast("cifar100/resnext29_32x4d_fast", "zoo", 16, 0.15, recipes.LEAN),
    # As time allows.
    row(f"cifar10/{UNDER5M}_amp_16ep", "amp", replace(recipes.AMP_PERTURBED, epochs=16), UNDER5M),
    *(ZOO_ROWS.pop(model) for model in ("wrn28_4", "wrn16_8")),
    fast("cifar10/resnext29_under5m_long", "amp", 48, 0.15, recipes.PLAIN_BLOCKS, mark=0.95),
    # The reports at full length, and variants to compare them with.
    *(
        row(f"cifar10/{UNDER5M}_{arm}", "amp", full, UNDER5M, quick=full.epochs // 12, printed=recipes.AMP_REPORTED.get(arm))
        for arm, full in recipes.AMP.items()
    ),
    row("cifar10/slim_resnet", "slim", recipes.SLIM_FINAL, printed=0.91),
    row("cifar10/slim_resnet_by_epoch", "slim", recipes.SLIM_BY_EPOCH, "slim_resnet", quick=4),
    row("cifar10/slim_resnet_max_pool", "slim", recipes.SLIM_FINAL, quick=4),
    row("cifar10/slim_resnet_stride_second", "slim", recipes.SLIM_FINAL, quick=4),
    row("cifar10/slim_resnet_plain", "slim", recipes.SLIM_PLAIN, "slim_resnet", quick=16),
    *ZOO_ROWS.values(),
    row("pikachu/resnet18_finetuned", "pikachu", recipes.PIKACHU_FINETUNED, RESNET18, pretrained=True, quick=4),
    row("pikachu/resnext50_finetuned", "pikachu", recipes.PIKACHU_FINETUNED, RESNEXT50, pretrained=True, quick=4),
    # Ours, for a GPU.
    row(f"cifar10/{UNDER5M}_strong", "amp", recipes.STRONG, UNDER5M),
    row("cifar10/wrn16_4_strong", "slim", recipes.STRONG, "wrn16_4"),
    row("cifar10/resnext29_32x4d_strong", "pikachu", recipes.STRONG, "resnext29_32x4d"),
    row(f"cifar10/{UNDER5M}_strong_amp", "amp", recipes.STRONG_PERTURBED, UNDER5M),
    row("cifar10/slim_resnet_strong", "slim", recipes.STRONG),  # our network; the next row is the report's own
    row("cifar10/slim_resnet_final_strong", "slim", recipes.STRONG, "slim_resnet"),
    *(row(f"cifar100/{model}_strong", "zoo", recipes.STRONG_100, model) for model in recipes.ZOO_STRONG),
    row("pikachu/resnet18_strong", "pikachu", recipes.PHOTOGRAPHS_STRONG, "resnet18"),
    row("pikachu/resnext50_strong", "pikachu", recipes.PHOTOGRAPHS_STRONG, "resnext50_32x4d"),
    *(row(f"cifar10/{model}", "zoo", recipes.ZOO_TIMED) for model in recipes.ZOO_REPORTED),
    # The fast path against the plain one, on a tenth of the images, to compare their results.
    row("cifar10_tenth/speed_fast", "speed", recipes.SPEED, UNDER5M),
    row("cifar10_tenth/speed_plain", "speed", replace(recipes.SPEED, channels_last=False, mixed_precision=False), UNDER5M),
]
EXPERIMENTS = {row.name: row for row in ROWS}
