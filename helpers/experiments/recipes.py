"""The recipes behind the plan's rows: the four reports', as written and as coded, and our own, short and long."""

from dataclasses import replace

from helpers.training.recipe import Recipe

# Pixel statistics of the training splits (computed by `data.channel_statistics`); ImageNet's for the photographs.
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
CIFAR100 = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
STATISTICS = {"cifar10": CIFAR10, "cifar100": CIFAR100, "pikachu": IMAGENET}
TO_ONE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # from -1 to 1
CROPPED = {"augment": "crop_flip", "padding": 4}
ADAM = {"optimizer": "adam", "learning_rate": 0.001}

# Report `pikachu`, section 3.1: SGD with momentum 0.9, batch 8, learning rate 0.1 divided by 10 every 7 epochs. The
# 20 epochs, the 224 pixels and the scaling to [-1, 1] come from its code. It names no augmentation and no weight decay.
PIKACHU = Recipe(epochs=20, batch_size=8, image_size=224, **TO_ONE, learning_rate=0.1, schedule="step", step_epochs=7)
# Table 4.2: 5,000 training and 1,000 test images of CIFAR-10; the text names no recipe but the one above.
CIFAR10_5K = replace(PIKACHU, image_size=32)
# Its code (54b4e34): photographs are squashed to a square, and mirrored at random in training and testing; weight decay
# is 0.1. Its function trains for 10 epochs and is called twice. The second call keeps the optimiser with its rate and weight
# decay, but counts epochs from 0 again: 0.1 for 7 epochs, 0.01 for 3 and 7, 0.001 for 3. The last epoch's weights are tested.
PIKACHU_CODED = replace(
    PIKACHU, weight_decay=0.1, augment="flip", flip_test=True, resize="squash", schedule="resumed_steps", period=10, keep="last"
)
# The models that it shows were saved after epochs 63 and 102. Where each call began is unknown (an early version asks for 20
# epochs and for one); we assume 10 per call, as for the photographs. Not reproduced: its early stopping, which ends a call,
# without its last epoch, when the running training loss has not improved three times in a row.
CIFAR10_5K_CODED = replace(PIKACHU_CODED, image_size=32, batch_size=64, resize="crop")
# Ours: a lower rate for weights pretrained on ImageNet, ImageNet's pixel statistics, random crops and flips.
PIKACHU_FINETUNED = replace(PIKACHU, epochs=10, learning_rate=0.005, step_epochs=4, augment="crop_flip", **IMAGENET)

# Report `amp`, sections "Model" and "Data Augmentation": the widely copied pixel statistics, whose deviations are means
# of the per-image ones. It names a momentum only for the perturbed run; its code has 0.9 in both.
COPIED = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
SGD = {"learning_rate": 0.001, "momentum": 0.9, "weight_decay": 1e-4}
AMP_TEXT = Recipe(epochs=100, batch_size=64, image_size=32, **COPIED, **SGD, schedule="cosine", **CROPPED)
# What its text leaves open follows its sources: pytorch-cifar's ResNeXt has torch's initialisation; the perturbation's authors
# clip the norm of every gradient to 50 and use Nesterov momentum. The cosine, down to zero in the last epoch, is our choice.
AMP_SGD = replace(AMP_TEXT, initialisation="torch")
AMP_PERTURBED = replace(AMP_SGD, learning_rate=0.1, perturbation=0.5, clip_norm=50.0, nesterov=True)
# Two fair baselines: the perturbed run without its perturbation, at equal epochs and at equal gradients.
AMP_SAME = replace(AMP_PERTURBED, perturbation=None)
AMP = {"sgd": AMP_SGD, "amp": AMP_PERTURBED, "sgd_same": AMP_SAME, "sgd_twice": replace(AMP_SAME, epochs=200)}
# As coded: the start of a cosine over 200 epochs, ended where the report's two runs were. Not reproduced: BatchNorm statistics
# from both passes, and that the perturbed run, after its first 50 epochs, goes on from the best weights so far.
AMP_CODED = replace(AMP_SGD, epochs=67, weight_decay=5e-4, schedule="periodic_epochs", period=200)
AMP_CODED_PERTURBED = replace(AMP_CODED, epochs=85, learning_rate=0.1, weight_decay=0.0, perturbation=0.5)
AMP |= {"sgd_coded": AMP_CODED, "amp_coded": AMP_CODED_PERTURBED}
# Ours: again the perturbed run and its equal-epochs baseline, now with warm-up.
AMP |= {"amp_warm": replace(AMP_PERTURBED, warmup_epochs=3), "sgd_warm": replace(AMP_SAME, warmup_epochs=3)}
SPEED = replace(AMP_TEXT, epochs=4, learning_rate=0.1)  # at the perturbed run's rate, without perturbation
AMP_REPORTED = {"sgd": (0.89, 0.90), "amp": (0.90, 0.91)}

# Report `slim`, figure 1 gives optimiser, rate and batch size; the pixel statistics are its code's, the epochs its search's.
SLIM_TRIAL = Recipe(epochs=20, batch_size=64, image_size=32, **TO_ONE, **ADAM)
# The report's final recipe. Its log in figure 2 reveals the schedule: the printed rates follow a cosine over 25 batches, not
# epochs, down to 0.0001 and up again, with 1,562 batches of 128 per epoch. Its code names no momentum and no initialisation,
# so torch's is used. The trials above use He-normal weights.
COSINE = {"schedule": "periodic_batches", "period": 25, "lowest_learning_rate": 1e-4}
SLIM_SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 1e-4, "initialisation": "torch"}
SLIM_FINAL = replace(SLIM_TRIAL, epochs=80, batch_size=128, **SLIM_SGD, **COSINE, augment="fourfold")
SLIM_PLAIN = replace(SLIM_FINAL, epochs=320, augment="none")  # sees as many images as 80 epochs with four copies of each
SLIM_CROPPED = replace(SLIM_PLAIN, **CROPPED)
SLIM_BY_EPOCH = replace(SLIM_FINAL, schedule="periodic_epochs")
# Its search as coded: trial 3's network (`slim_resnet_trial3`) on plain data, a cosine of 10 batches down to 0 and up again.
SLIM_SEARCH = replace(SLIM_FINAL, epochs=20, period=10, lowest_learning_rate=0.0, augment="none")

# Report `zoo`, sections 3.4 and 5: Adam, no augmentation (for ResNeXts), six hours, early stopping. It names neither the rate
# (here Adam's default) nor the batch size, patience or maximum number of epochs; the pixel statistics are the true ones.
ZOO = Recipe(epochs=200, batch_size=128, image_size=32, **CIFAR100, **ADAM, time_budget=6 * 3600.0, patience=10)
ZOO_SIMPLENET = replace(ZOO, epochs=50, patience=None)  # section 2.2 trains it for 50 epochs
# The same on CIFAR-10, for a GPU: ten minutes per network, the only limit; the fourteen networks take one Colab session.
ZOO_TIMED = replace(ZOO, epochs=1000, **CIFAR10, time_budget=600.0, patience=None)
# The report's accuracy of each network on CIFAR-100, section 5.2; None for our networks and for the one it did not finish.
ZOO_REPORTED = {
    **{"wrn16_2": 0.4426, "zoo_resnext1": 0.2857, "zoo_resnext2": 0.305, "zoo_resnext3": 0.2021},
    **dict.fromkeys(("zoo_resnext1_doubling", "zoo_resnext1_rectified")),
    **{"wrn28_2": 0.4214, "wrn16_4": 0.4509, "wrn28_4": 0.4621, "wrn16_8": 0.4354, "simplenet": 0.6356, "wrn16_16": 0.4372},
    **dict.fromkeys(("res2next29_6c24w4s", "zoo_resnext1_doubling_wide")),
}
ZOO_STRONG = ["simplenet", "res2next29_6c24w4s", "zoo_resnext1_doubling", "wrn28_4", "wrn16_2", "wrn16_4", "wrn28_2"]
ZOO_STRONG += ["resnext29_32x4d"]

# Ours, with the true pixel statistics. Sources: Goyal et al. 2017 for warm-up, Szegedy et al. 2016 for label smoothing.
NESTEROV = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "decay_weights_only": True, "label_smoothing": 0.1}
RISING = {"learning_rate": 0.1, "warmup_epochs": 5, "schedule": "cosine"}
STRONG = Recipe(epochs=200, batch_size=128, image_size=32, **CIFAR10, **NESTEROV, **RISING, **CROPPED)
STRONG_100 = replace(STRONG, **CIFAR100)
STRONG_PERTURBED = replace(STRONG, perturbation=0.5, clip_norm=50.0, initialisation="torch")  # as AMP_PERTURBED
# The short recipe. Sources: arXiv 1905.04753 for the linear schedule; airbench (arXiv 2404.00498) for the reflected border,
# alternating flip and, in its long variant, cutout; Goyal et al., section 5.1, for last BatchNorms that start at zero. The
# moving average spans about 200 steps, half an epoch: long enough to smooth, and too short to hold, at the end of the run,
# weights or BatchNorm statistics from smaller images or from a much higher rate.
AIRBENCH = {"border": "reflect", "flip": "alternating", "cutout": 8}
GROWING = {"sizes": ((0.0, 16), (0.4, 24), (0.7, 32)), "ema": 0.995}
FAST = replace(STRONG, schedule="linear", zero_last_batchnorm=True, **AIRBENCH, **GROWING)
PHOTOGRAPHS = {"image_size": 224, "batch_size": 32, "augment": "resized_crop_flip", "padding": 0, "learning_rate": 0.05}
PHOTOGRAPHS_STRONG = replace(STRONG, **PHOTOGRAPHS, **IMAGENET)
# An epoch of the photographs is 25 steps, so their moving average spans two epochs.
PHOTOGRAPHS_FAST = PHOTOGRAPHS | {"border": "zero", "cutout": 0, "sizes": ((0.0, 128), (0.4, 176), (0.7, 224)), "ema": 0.98}
PLAIN_BLOCKS = {"zero_last_batchnorm": False}  # wide blocks and SimpleNet do not end with a BatchNorm
LEAN = PLAIN_BLOCKS | {"cutout": 0}  # in 12 epochs, both cost accuracy (notebook 06)
