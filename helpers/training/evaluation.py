"""Evaluation: a model's logits for a split, and their loss and accuracy."""

from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn

from helpers import data
from helpers.training import processes
from helpers.training.convolutions import convolutions
from helpers.training.recipe import Recipe
from helpers.training.step import autocast

EVALUATION_BATCH, ON_GPU = 64, 2**18  # images; pixels per batch on a GPU, where launches dominate for small images


@torch.inference_mode()
def predict(
    model: nn.Module, split: data.Split, recipe: Recipe, batch_size: int | None = None, mirrored: bool = False
) -> torch.Tensor:
    """The model's logits for a split, in order: eval mode, float32 (N, num_classes), on the CPU. Only `flip_test` augments.

    With `mirrored`, they are averaged over each image and its mirror image. Several processes share the batches.
    """
    device = next(model.parameters()).device
    model.eval()
    mirror = data.sample_mirrors(len(split), torch.Generator().manual_seed(0)) if recipe.flip_test else None
    usual = max(EVALUATION_BATCH, ON_GPU // recipe.image_size**2) if device.type == "cuda" else EVALUATION_BATCH
    batches = enumerate(data.batches(split.to(device), batch_size or usual, mirror=mirror, **recipe.view))
    logits = {}
    with convolutions(device, recipe), autocast(device, recipe):
        for number, (images, _) in islice(batches, processes.rank(), None, processes.count()):
            scores = model(images).float()
            logits[number] = (scores + model(images.flip(-1)).float()) / 2 if mirrored else scores
    if processes.count() == 1:
        return torch.cat(list(logits.values())).cpu()
    everyone = processes.gathered({number: scores.cpu() for number, scores in logits.items()})
    return torch.cat([everyone[number % len(everyone)][number] for number in range(sum(map(len, everyone)))])


def evaluate(model: nn.Module, split: data.Split, recipe: Recipe) -> tuple[float, float]:
    """The mean cross-entropy (nats) and the accuracy of the model over the images of a split."""
    return score(predict(model, split, recipe), split.labels.cpu())


def score(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy over images: logits (N, C), labels (N,)."""
    loss = F.cross_entropy(logits.double(), labels).item()
    return loss, (logits.argmax(1) == labels).double().mean().item()
