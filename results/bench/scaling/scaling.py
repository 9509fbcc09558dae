"""The speed-up from more GPUs: a cost model for 1 to 64, and images per second measured with the processes started.

`PYTHONPATH=. [torchrun --standalone --nproc-per-node=2 | python] results/bench/scaling/scaling.py` saves both beside this file.
"""

import json
import os
import time
from itertools import product

import matplotlib.pyplot as plt
import torch
from torch import nn

from helpers import experiments, models, training
from helpers.experiments.records import RESULTS
from helpers.runtime import device_name, save_text
from helpers.training import processes

# Classes, pixels, and the recipes' batches.
BATCHES = {"resnext29_under5m": (10, 32, (64, 128)), "resnext50_32x4d": (2, 224, (8, 32))}
ASSUMED = {
    "operations_per_second": 2e13,  # of one GPU in training, at any batch size
    "launch_seconds": 1e-5,  # per kernel; a step launches three per layer, and takes at least that long
    "latency_seconds": 1e-5,  # of each of the 2 (N - 1) messages in a ring all-reduce
    "bytes_per_second": {"PCIe": 1e10, "NVLink": 2e11},
    "hidden": 2 / 3,  # of a step: its backward pass, during which DistributedDataParallel sends the gradients that are ready
}
GPUS, PAYS, STEPS = (1, 2, 4, 8, 16, 32, 64), 1.25, 4  # doubling the GPUs pays off if it is at least this much faster


def images_per_second(parts: dict, batch: int, gpus: int, bandwidth: float) -> float:
    """The cost model: a step computes one GPU's share of the batch, and sends 2 (N - 1) / N of the gradient's bytes."""
    arithmetic = 6 * parts["macs"] * -(-batch // gpus) / ASSUMED["operations_per_second"]
    compute = max(arithmetic, 3 * parts["layers"] * ASSUMED["launch_seconds"])
    sending = 2 * (gpus - 1) * (parts["gradient_bytes"] / gpus / bandwidth + ASSUMED["latency_seconds"])
    return batch / (compute + max(0.0, sending - ASSUMED["hidden"] * compute))


def modelled() -> list[dict]:
    """One row per network, batch and link: the counts, the speeds by number of GPUs, and how many GPUs pay off."""
    rows = []
    for name, (classes, pixels, batches) in BATCHES.items():
        network = models.inspect.network(name, classes)
        layers = sum(isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear) for layer in network.modules())
        parts = {"macs": models.count_macs(network, (1, 3, pixels, pixels)), "layers": layers}
        parts["gradient_bytes"] = 4 * models.count_parameters(network)
        for batch, (link, bandwidth) in product(batches, ASSUMED["bytes_per_second"].items()):
            speeds = {gpus: images_per_second(parts, batch, gpus, bandwidth) for gpus in GPUS if gpus <= batch}
            pays = next(gpus for gpus in speeds if speeds.get(2 * gpus, 0) < PAYS * speeds[gpus])
            rows.append({"model": name, "batch": batch, "link": link, **parts, "images_per_second": speeds, "pays_up_to": pays})
    return rows


def measured() -> dict:
    """The speed of the first network on this machine with the processes started, over a few steps after a first one.

    The CPU seconds per step of the first process show what a free core would need if the machine is busy.
    """
    device, name = processes.join(), next(iter(BATCHES))
    classes, pixels, (batch, *_) = BATCHES[name]
    recipe, model = experiments.find(f"cifar10/{name}_sgd").recipe, models.build(name, classes).to(device)
    learner = training.Learner(model, recipe, called=processes.wrap(training.prepare(model, recipe)))
    step = torch.rand(batch, 3, pixels, pixels, device=device), torch.zeros(batch, dtype=torch.int64, device=device)
    training.train_epoch(learner, [step])
    start, used = time.perf_counter(), time.process_time()
    training.train_epoch(learner, [step] * STEPS)
    speed, used = batch * STEPS / (time.perf_counter() - start), (time.process_time() - used) / STEPS
    about = {"model": name, "batch": batch, "device": device_name(device), "load_average": os.getloadavg()[0]}
    return about | {"images_per_second": speed, "processor_seconds_a_step": used}


def draw(rows: list[dict]) -> None:
    """Plot the speed-up by number of GPUs; the marker is at the largest number that pays off."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (link, bandwidth) in zip(axes, ASSUMED["bytes_per_second"].items(), strict=True):
        for row, style in zip([row for row in rows if row["link"] == link], ("o-", "s--", "^-", "D--"), strict=True):
            speeds, label = row["images_per_second"], f"{row['model']}, batch {row['batch']}: pays up to {row['pays_up_to']}"
            mark = [list(speeds).index(row["pays_up_to"])]
            axis.loglog(list(speeds), [speed / speeds[1] for speed in speeds.values()], style, markevery=mark, label=label)
        ticks = {"xticks": GPUS, "xticklabels": GPUS, "yticks": GPUS, "yticklabels": GPUS}
        axis.set(title=f"{link}, {bandwidth / 1e9:g} GB/s", xlabel="GPUs", ylabel="times the speed of one GPU", **ticks)
        axis.legend(fontsize=8)
    figure.suptitle("The same batch over more GPUs: a cost model (the rates of a GPU and of the links are assumed)")
    figure.savefig(RESULTS / "bench/scaling/scaling.png", dpi=200)


if __name__ == "__main__":
    path, here = RESULTS / "bench/scaling/cost_model.json", measured()
    if processes.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(path.read_text())["measured"] if path.exists() else {}
        found = {"measured": kept | {f"{processes.count()} processes": here}, "assumed": ASSUMED, "modelled": modelled()}
        save_text(path, json.dumps(found, indent=1) + "\n")
        draw(found["modelled"])
    processes.leave()
