"""The recipes that the plan's rows are made of: the four reports', as written and as coded, and ours, short and long."""

from dataclasses import replace

from helpers.training.recipe import Recipe

# The pixel statistics of the training splits (`data.channel_statistics` counts them); of ImageNet for the photographs.
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
CIFAR100 = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
STATISTICS = {"cifar10": CIFAR10, "cifar100": CIFAR100, "pikachu": IMAGENET}
TO_ONE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # from -1 to 1
CROPPED = {"augment": "crop_flip", "padding": 4}
ADAM = {"optimizer": "adam", "learning_rate": 0.001}

# Report `pikachu`, section 3.1: SGD, batch 8, learning rate 0.1, momentum 0.9, divided by 10 every 7 epochs. The 20 epochs,
# the 224 pixels and the scaling to [-1, 1] are its code's; it names no augmentation and no weight decay.
PIKACHU = Recipe(
    epochs=20, batch_size=8, image_size=224, **TO_ONE, learning_rate=0.1, momentum=0.9, schedule="step", step_epochs=7
)
# Table 4.2: 5,000 training and 1,000 test images of CIFAR-10; the text names no other recipe than the one above.
CIFAR10_5K = replace(PIKACHU, image_size=32)
# Its code: photographs squashed to a square, mirrored at random for training and for testing, weight decay 0.1. A call of its
# function is 10 epochs, and it is called twice. The second begins with the optimiser of the first, rate included, and a new
# count of epochs: 0.1 for 7, 0.01 for 3 and 7, 0.001 for 3. What it tests is the last epoch.
PIKACHU_CODED = replace(
    PIKACHU, weight_decay=0.1, augment="flip", flip_test=True, resize="squash", schedule="resumed_steps", period=10, keep="last"
)
# The models that it shows were saved after epochs 63 and 102. Where their calls began is not known; they are taken to be of 10
# epochs, as for the photographs. Not rebuilt: its early stop, which ends a call, without its last epoch, when the running
# training loss has not improved three times.
CIFAR10_5K_CODED = replace(PIKACHU_CODED, image_size=32, batch_size=64, resize="crop")
# Ours: a gentler rate for weights that already know ImageNet, ImageNet's pixel statistics, random crops and flips.
PIKACHU_FINETUNED = replace(PIKACHU, epochs=10, learning_rate=0.005, step_epochs=4, augment="crop_flip", **IMAGENET)

# Report `amp`, section "Model" and "Data Augmentation": its pixel statistics are the widely copied ones, whose deviations are
# the mean of each image's own. It names a momentum for the perturbed run only; without one, 0.001 would hardly move.
COPIED = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
SGD = {"learning_rate": 0.001, "momentum": 0.9, "weight_decay": 1e-4}
AMP_TEXT = Recipe(epochs=100, batch_size=64, image_size=32, **COPIED, **SGD, schedule="cosine", **CROPPED)
# What its text leaves open is as in its sources: the networks that it lists set no initialisation, and the optimiser that it
# names clips the norm of every gradient to 50 and has Nesterov momentum.
AMP_SGD = replace(AMP_TEXT, initialisation="torch")
AMP_PERTURBED = replace(AMP_SGD, learning_rate=0.1, perturbation=0.5, clip_norm=50.0, nesterov=True)
# The fair pair: everything as in the perturbed run but the perturbation, for as many epochs, and for as many gradients.
AMP_SAME = replace(AMP_PERTURBED, perturbation=None)
AMP = {"sgd": AMP_SGD, "amp": AMP_PERTURBED, "sgd_same": AMP_SAME, "sgd_twice": replace(AMP_SAME, epochs=200)}
# Ours: the fair pair once more, with a rate that rises over the first epochs.
AMP |= {"amp_warm": replace(AMP_PERTURBED, warmup_epochs=3), "sgd_warm": replace(AMP_SAME, warmup_epochs=3)}
SPEED = replace(AMP_TEXT, epochs=4, learning_rate=0.1)  # at the perturbed run's rate, without perturbation
AMP_REPORTED = {"sgd": (0.89, 0.90), "amp": (0.90, 0.91)}

# Report `slim`, figure 1 names optimiser, rate and batch; the pixel statistics are its code's, the epochs its search's.
SLIM_TRIAL = Recipe(epochs=20, batch_size=64, image_size=32, **TO_ONE, **ADAM)
# The report calls its accuracies validation, and takes the best epoch on the test images.
SLIM_REPORTED = {
    "resnet18_torchvision": 0.78,
    "slim_resnet_trial1": 0.77,
    "slim_resnet_trial2": 0.77,
    "slim_resnet_trial3": 0.84,
}
# The report's final recipe. Its log in figure 2 gives the schedule away: the rates printed are those of a cosine of 25 batches,
# not epochs, down to 0.0001 and up again, at 1,562 batches of 128 an epoch. Its code names no momentum, and no initialisation:
# that is torch's. The trials above began before that was read; their networks draw He-normal weights.
COSINE = {"schedule": "periodic_batches", "period": 25, "lowest_learning_rate": 1e-4}
SLIM_SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 1e-4, "initialisation": "torch"}
SLIM_FINAL = replace(SLIM_TRIAL, epochs=80, batch_size=128, **SLIM_SGD, **COSINE, augment="fourfold")
SLIM_PLAIN = replace(SLIM_FINAL, epochs=320, augment="none")  # as many images seen as in 80 epochs of four copies
SLIM_CROPPED = replace(SLIM_PLAIN, **CROPPED)
SLIM_BY_EPOCH = replace(SLIM_FINAL, schedule="periodic_epochs")
# Its search as coded: trial 3's network (`slim_resnet_trial3`) on plain data, a cosine of 10 batches down to 0 and up again.
SLIM_SEARCH = replace(SLIM_FINAL, epochs=20, period=10, lowest_learning_rate=0.0, augment="none")

# Report `zoo`, sections 3.4 and 5: Adam, no augmentation, six hours for every network and an early stopper. It names neither
# the rate, which is Adam's own here, nor the batch, the patience or the longest run; the pixel statistics are the true ones.
ZOO = Recipe(epochs=200, batch_size=128, image_size=32, **CIFAR100, **ADAM, time_budget=6 * 3600.0, patience=10)
ZOO_SIMPLENET = replace(ZOO, epochs=50, patience=None)  # section 2.2 trains it for 50 epochs
# The same on CIFAR-10, for a GPU: ten minutes alone decide, equal for all; fourteen of them are one session in Colab.
ZOO_TIMED = replace(ZOO, epochs=1000, **CIFAR10, time_budget=600.0, patience=None)
# Each network of the report with its accuracy on CIFAR-100, section 5.2; ours have none, nor has the one it did not finish.
ZOO_REPORTED = {
    **{"wrn16_2": 0.4426, "zoo_resnext1": 0.2857, "zoo_resnext2": 0.305, "zoo_resnext3": 0.2021},
    **dict.fromkeys(("zoo_resnext1_doubling", "zoo_resnext1_rectified")),
    **{"wrn28_2": 0.4214, "wrn16_4": 0.4509, "wrn28_4": 0.4621, "wrn16_8": 0.4354, "simplenet": 0.6356, "wrn16_16": 0.4372},
    **dict.fromkeys(("res2next29_6c24w4s", "zoo_resnext1_doubling_wide")),
}
ZOO_STRONG = ["simplenet", "res2next29_6c24w4s", "zoo_resnext1_doubling", "wrn28_4", "wrn16_2", "wrn16_4", "wrn28_2"]
ZOO_STRONG += ["resnext29_32x4d"]

# Ours, with the true pixel statistics: Goyal et al. 2017 for the warm-up, Szegedy et al. 2016 for the smoothed labels.
NESTEROV = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "decay_weights_only": True, "label_smoothing": 0.1}
RISING = {"learning_rate": 0.1, "warmup_epochs": 5, "schedule": "cosine"}
STRONG = Recipe(epochs=200, batch_size=128, image_size=32, **CIFAR10, **NESTEROV, **RISING, **CROPPED)
STRONG_100 = replace(STRONG, **CIFAR100)
# The short recipe. Sources: the linear schedule is of arXiv 1905.04753; the reflected border, the alternating flip and the
# cutout are airbench's (arXiv 2404.00498); the last BatchNorm of a block at zero is Goyal et al.'s, section 5.1. The moving
# average reaches back over some 200 steps, half an epoch: far enough to smooth, and too short to hold weights or BatchNorm
# statistics of smaller images, or of a much higher rate, when the run ends.
AIRBENCH = {"border": "reflect", "flip": "alternating", "cutout": 8}
GROWING = {"sizes": ((0.0, 16), (0.4, 24), (0.7, 32)), "ema": 0.995}
FAST = replace(STRONG, schedule="linear", zero_last_batchnorm=True, **AIRBENCH, **GROWING)
PHOTOGRAPHS = {"image_size": 224, "batch_size": 32, "augment": "resized_crop_flip", "padding": 0, "learning_rate": 0.05}
PHOTOGRAPHS_STRONG = replace(STRONG, **PHOTOGRAPHS, **IMAGENET)
# 25 steps are an epoch of the photographs, so their moving average reaches back over two.
PHOTOGRAPHS_FAST = PHOTOGRAPHS | {"border": "zero", "cutout": 0, "sizes": ((0.0, 128), (0.4, 176), (0.7, 224)), "ema": 0.98}
PLAIN_BLOCKS = {"zero_last_batchnorm": False}  # of a wide block and of SimpleNet no BatchNorm is last
