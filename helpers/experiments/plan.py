"""The plan: every experiment as one declared row: report, data set, model, recipe, and what the report printed."""

from dataclasses import dataclass, field, replace

from helpers.training.recipe import Recipe


@dataclass(frozen=True)
class Experiment:
    """One row of the plan.

    Attributes:
        quick: what the `quick` profile changes in the recipe.
        reported: what the report prints for this row: accuracies as fractions, or (low, high) where it gives a range; the
            confusion matrix as [[TN, FP], [FN, TP]].
    """

    name: str
    report: str
    dataset: str
    model: str
    recipe: Recipe
    pretrained: bool = False
    quick: dict = field(default_factory=dict)
    reported: dict = field(default_factory=dict)


# Report `pikachu`, section 3.1: SGD, batch 8, learning rate 0.1, momentum 0.9, divided by 10 every 7 epochs. The 20 epochs,
# the 224 pixels and the scaling to [-1, 1] are its code's; it names no augmentation and no weight decay.
PIKACHU = Recipe(
    epochs=20,
    batch_size=8,
    image_size=224,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    learning_rate=0.1,
    momentum=0.9,
    schedule="step",
    step_epochs=7,
)
# Ours: a gentler rate for weights that already know ImageNet, its own pixel statistics, and a flip.
PIKACHU_FINETUNED = replace(
    PIKACHU,
    epochs=10,
    learning_rate=0.005,
    step_epochs=4,
    augment="crop_flip",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
PIKACHU_QUICK = {"epochs": 9, "step_epochs": 3}

# Report `pikachu`, table 4.2: 5,000 training and 1,000 test images of CIFAR-10; it names no other recipe than the one above.
CIFAR10_5K = replace(PIKACHU, image_size=32)

# Report `amp`, section "Model" and "Data Augmentation": its pixel statistics are the widely copied ones, whose deviations are
# the mean of each image's own. It names a momentum for the perturbed run only; without one, 0.001 would hardly move.
AMP_SGD = Recipe(
    epochs=100,
    batch_size=64,
    image_size=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    learning_rate=0.001,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="cosine",
    augment="crop_flip",
    padding=4,
)
AMP_PERTURBED = replace(AMP_SGD, learning_rate=0.1, perturbation=0.5)
# The fair pair: everything as in the perturbed run but the perturbation, for as many epochs, and for as many gradients.
AMP_SAME = replace(AMP_PERTURBED, perturbation=None)
AMP_TWICE = replace(AMP_SAME, epochs=200)
# Ours: at a rate of 0.1 from the first step, the loss of either first climbs above 19 (plain) or 110 (perturbed). So the fair
# pair once more, with a rate that rises over the first epochs.
AMP = {"sgd": AMP_SGD, "amp": AMP_PERTURBED, "sgd_same": AMP_SAME, "sgd_twice": AMP_TWICE}
AMP |= {"amp_warm": replace(AMP_PERTURBED, warmup_epochs=3), "sgd_warm": replace(AMP_SAME, warmup_epochs=3)}
AMP_REPORTED = {"sgd": {"test_accuracy": (0.89, 0.90)}, "amp": {"test_accuracy": (0.90, 0.91)}}
# Ours, with the true pixel statistics: Goyal et al. 2017 for the warm-up, Szegedy et al. 2016 for the smoothed labels.
STRONG = Recipe(
    epochs=200,
    batch_size=128,
    image_size=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    learning_rate=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    decay_weights_only=True,
    schedule="cosine",
    warmup_epochs=5,
    label_smoothing=0.1,
    augment="crop_flip",
    padding=4,
)

# Report `slim`, figure 1 names optimiser, rate and batch; the pixel statistics are its code's, the epochs its search's.
SLIM_TRIAL = Recipe(
    epochs=20,
    batch_size=64,
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    optimizer="adam",
    learning_rate=0.001,
)
# The report's final recipe. Its log in figure 2 gives the schedule away: the rates printed are those of a cosine of 25 batches,
# not epochs, down to 0.0001 and up again, at 1,562 batches of 128 an epoch. Its code names no momentum.
SLIM_FINAL = replace(
    SLIM_TRIAL,
    epochs=80,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.0,
    weight_decay=1e-4,
    schedule="periodic_batches",
    period=25,
    lowest_learning_rate=1e-4,
    augment="fourfold",
)
# For the search and the fair three: the rate falls once over the whole run, so that no epoch ends on a low one by luck.
SLIM_COSINE = replace(SLIM_FINAL, epochs=20, schedule="cosine", lowest_learning_rate=0.0, augment="none")
SLIM_TRIALS = [
    ("slim_resnet_trial1", "slim_resnet_trial1", {"test_accuracy": 0.77}),
    ("slim_resnet_trial2", "slim_resnet_trial2", {"test_accuracy": 0.77}),
    ("slim_resnet_trial3", "slim_resnet_trial3", {"test_accuracy": 0.84}),
    ("resnet18_torchvision", "torchvision/resnet18", {"test_accuracy": 0.78}),
]
# Report `zoo`, sections 3.4 and 5: Adam, no augmentation, six hours for every network and an early stopper. It names neither
# the rate, which is Adam's own here, nor the batch, the patience or the longest run; the pixel statistics are the true ones.
ZOO = Recipe(
    epochs=200,
    batch_size=128,
    image_size=32,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    optimizer="adam",
    learning_rate=0.001,
    time_budget=6 * 3600.0,
    patience=10,
)
# The same on a tenth of CIFAR-10, for two CPU cores: the time alone decides, so that it is equal for all.
ZOO_TENTH = replace(ZOO, epochs=1000, mean=STRONG.mean, std=STRONG.std, time_budget=900.0, patience=None)
# And on all of it, for a GPU, whose ten minutes are more than a CPU's fifteen: fourteen of them are one session in Colab.
ZOO_WHOLE = replace(ZOO_TENTH, time_budget=600.0)
ZOO_STRONG = replace(STRONG, mean=ZOO.mean, std=ZOO.std)
# Each network of the report with its accuracy on CIFAR-100, section 5.2; ours have none, nor has the one it did not finish.
ZOO_REPORTED = {
    "simplenet": 0.6356,
    "res2next29_6c24w4s": None,
    "zoo_resnext1": 0.2857,
    "zoo_resnext2": 0.305,
    "zoo_resnext3": 0.2021,
    "zoo_resnext1_rectified": None,
    "zoo_resnext1_doubling": None,
    "zoo_resnext1_doubling_wide": None,
    "wrn16_2": 0.4426,
    "wrn16_4": 0.4509,
    "wrn16_8": 0.4354,
    "wrn16_16": 0.4372,
    "wrn28_2": 0.4214,
    "wrn28_4": 0.4621,
}
ZOO_RECIPES = {"simplenet": replace(ZOO, epochs=50, patience=None)}  # section 2.2 trains it for 50 epochs
ZOO_QUICK = {"epochs": 8}

_ROWS = [
    Experiment(
        "pikachu/resnext50_ours",
        "pikachu",
        "pikachu",
        "resnext50_32x4d",
        PIKACHU,
        quick=PIKACHU_QUICK,
        reported={"val_loss": 0.5021, "test_accuracy": 0.7946, "confusion": [[95, 34], [19, 102]]},
    ),
    Experiment(
        "pikachu/resnext50_torchvision",
        "pikachu",
        "pikachu",
        "torchvision/resnext50_32x4d",
        PIKACHU,
        quick=PIKACHU_QUICK,
        reported={"val_loss": 0.5047, "test_accuracy": 0.7752, "confusion": [[90, 39], [19, 102]]},
    ),
    Experiment(
        "pikachu/resnet18_torchvision",
        "pikachu",
        "pikachu",
        "torchvision/resnet18",
        PIKACHU,
        quick=PIKACHU_QUICK,
        reported={"val_loss": 0.3917, "test_accuracy": 0.8333, "confusion": [[102, 29], [14, 102]]},
    ),
    Experiment(
        "pikachu/resnet18_finetuned",
        "pikachu",
        "pikachu",
        "torchvision/resnet18",
        PIKACHU_FINETUNED,
        pretrained=True,
        quick={"epochs": 4, "step_epochs": 2},
    ),
    Experiment(
        "pikachu/resnext50_finetuned",
        "pikachu",
        "pikachu",
        "torchvision/resnext50_32x4d",
        PIKACHU_FINETUNED,
        pretrained=True,
        quick={"epochs": 4, "step_epochs": 2},
    ),
    Experiment(
        "cifar10_5k/resnext29_32x4d",
        "pikachu",
        "cifar10_5k",
        "resnext29_32x4d",
        CIFAR10_5K,
        quick=PIKACHU_QUICK,
        reported={"test_accuracy": 0.4506},
    ),
    Experiment(
        "cifar10_5k/resnet18_torchvision",
        "pikachu",
        "cifar10_5k",
        "torchvision/resnet18",
        CIFAR10_5K,
        quick=PIKACHU_QUICK,
        reported={"test_accuracy": 0.6638},
    ),
    *(
        Experiment(
            f"cifar10/resnext29_under5m_{name}",
            "amp",
            "cifar10",
            "resnext29_under5m",
            recipe,
            quick={"epochs": recipe.epochs * 8 // 100},
            reported=AMP_REPORTED.get(name, {}),
        )
        for name, recipe in (AMP | {"strong": STRONG, "strong_amp": replace(STRONG, perturbation=0.5)}).items()
    ),
    *(  # the same six on a tenth of the training images, for as long as two CPU cores allow
        Experiment(
            f"cifar10_tenth/resnext29_under5m_{name}",
            "amp",
            "cifar10_tenth",
            "resnext29_under5m",
            replace(recipe, epochs=recipe.epochs * 15 // 100),
            quick={"epochs": recipe.epochs * 5 // 100},
        )
        for name, recipe in AMP.items()
    ),
    *(  # no report's: one short training by the fast path and by the plain one, which must end alike
        Experiment(
            f"cifar10_tenth/speed_{name}",
            "speed",
            "cifar10_tenth",
            "resnext29_under5m",
            replace(AMP_SAME, epochs=4, **changes),
            quick={"epochs": 2},
        )
        for name, changes in (("fast", {}), ("plain", {"channels_last": False, "mixed_precision": False}))
    ),
    *(  # the report calls its accuracies validation, and takes the best epoch on the test images
        Experiment(f"cifar10/{name}", "slim", "cifar10", model, SLIM_TRIAL, quick={"epochs": 8}, reported=reported)
        for name, model, reported in SLIM_TRIALS
    ),
    *(
        Experiment(f"cifar10/{name}", "slim", "cifar10", model, recipe, quick={"epochs": epochs}, reported=reported)
        for name, model, recipe, epochs, reported in (
            ("slim_resnet", "slim_resnet", SLIM_FINAL, 4, {"test_accuracy": 0.91}),
            ("slim_resnet_by_epoch", "slim_resnet", replace(SLIM_FINAL, schedule="periodic_epochs"), 4, {}),
            ("slim_resnet_max_pool", "slim_resnet_max_pool", SLIM_FINAL, 4, {}),
            ("slim_resnet_stride_second", "slim_resnet_stride_second", SLIM_FINAL, 4, {}),
            # as many images seen as in 80 epochs of four copies
            ("slim_resnet_plain", "slim_resnet", replace(SLIM_FINAL, augment="none", epochs=320), 16, {}),
            ("slim_resnet_strong", "slim_resnet_strong", STRONG, 16, {}),
        )
    ),
    *(
        Experiment(f"cifar10_tenth/{name}", "slim", "cifar10_tenth", model, SLIM_TRIAL, quick={"epochs": 8})
        for name, model, _ in SLIM_TRIALS
    ),
    *(  # every image is seen 20 times, whether in 5 epochs of four copies or in 20 of one
        Experiment(
            f"cifar10_tenth/{name}",
            "slim",
            "cifar10_tenth",
            model,
            replace(SLIM_COSINE, epochs=epochs, augment=augment, padding=padding),
            quick={"epochs": epochs // 5},
        )
        for name, model, augment, epochs, padding in (
            ("slim_resnet", "slim_resnet", "fourfold", 5, 0),
            ("slim_resnet_plain", "slim_resnet", "none", 20, 0),
            ("slim_resnet_crop_flip", "slim_resnet", "crop_flip", 20, 4),
            ("slim_resnet_max_pool", "slim_resnet_max_pool", "fourfold", 5, 0),
            ("slim_resnet_stride_second", "slim_resnet_stride_second", "fourfold", 5, 0),
        )
    ),
    *(
        Experiment(
            f"cifar100/{model}",
            "zoo",
            "cifar100",
            model,
            ZOO_RECIPES.get(model, ZOO),
            quick=ZOO_QUICK | {"time_budget": 600.0},
            reported={} if accuracy is None else {"test_accuracy": accuracy},
        )
        for model, accuracy in ZOO_REPORTED.items()
    ),
    *(
        Experiment(f"cifar100/{model}_strong", "zoo", "cifar100", model, ZOO_STRONG, quick=ZOO_QUICK)
        for model in ("simplenet", "res2next29_6c24w4s", "zoo_resnext1_doubling", "wrn28_4")
    ),
    *(
        Experiment(f"{dataset}/{model}", "zoo", dataset, model, recipe, quick=ZOO_QUICK)
        for dataset, recipe in (("cifar10_tenth", ZOO_TENTH), ("cifar10", ZOO_WHOLE))
        for model in ZOO_REPORTED
    ),
]
EXPERIMENTS = {row.name: row for row in _ROWS}
