"""Features for the Frechet distance: the last layer but one of a small classifier.

Inception features say little about digits, so a classifier trained on the data set itself takes
their place. The number then is FD-digits, or FD- and the name of the data set; it is not the FID,
and is comparable only between models measured with the same classifier.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaekern.data import Dataset, Samples
from vaekern.data.rows import in_memory

FEATURES = 64
FILE_KIND = "feature-classifier"
# Below this side a convolution has nothing to slide over, and a plain MLP is as good and faster.
SMALLEST_CONVOLUTION = 16
SCALED_BY = 10_000  # images, where the set stays on disk
BATCH = 64
# EPOCHS passes, but no more than STEPS steps: seconds on a CPU, whatever the size of the data.
EPOCHS, STEPS = 60, 1000
LEARNING_RATE = 2e-3


class FeatureClassifier(nn.Module):
    """A classifier of small images with a 64-dimensional last hidden layer.

    Args:
        sample_shape: (C, H, W) of the images.
        classes: number of classes.
        name: name of the data set it is trained on.

    Attributes:
        accuracy: share of the test images it classifies correctly; nan before training.
        metric: name of the Frechet distance in these features, for example ``FD-digits``.
    """

    def __init__(self, sample_shape: tuple[int, int, int], classes: int, name: str) -> None:
        super().__init__()
        self.sample_shape = sample_shape
        self.classes = classes
        self.name = name
        self.metric = f"FD-{name}"
        self.accuracy = float("nan")
        channels, height, width = sample_shape
        # GELU and not ReLU, which leaves a third of the features at zero for every image.
        if min(height, width) < SMALLEST_CONVOLUTION:
            self.body = nn.Sequential(
                nn.Flatten(),
                nn.Linear(channels * height * width, 256),
                nn.GELU(),
                nn.Linear(256, FEATURES),
                nn.GELU(),
            )
        else:
            self.body = nn.Sequential(
                nn.Conv2d(channels, 16, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(32, 64, 3, stride=2, padding=1),
                nn.GELU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(64 * 4 * 4, FEATURES),
                nn.GELU(),
            )
        self.head = nn.Linear(FEATURES, classes)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def forward(
        self,
        images: Tensor,  # [N, C, H, W]
    ) -> Tensor:  # [N, classes] logits
        logits: Tensor = self.head(self.body(images))
        return logits

    @torch.no_grad()
    def features(
        self,
        images: Tensor,  # [N, C, H, W]
    ) -> Tensor:  # [N, 64]
        """Activations of the last hidden layer, float32, on the classifier's device.

        They are divided by one number, which makes their variance over the training set 1 on
        average over the 64 dimensions: a Frechet distance then means the same after every training.

        Raises:
            ValueError: images of another shape than the classifier was trained on.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.sample_shape:
            raise ValueError(
                f"images must have shape [N, {', '.join(map(str, self.sample_shape))}], as those "
                f"the classifier was trained on, got {list(images.shape)}; "
                f"resize them or train a classifier on their data"
            )
        weight = self.head.weight
        blocks = [self.body(part.to(weight)) / self.scale for part in images.split(1024)]
        return torch.cat(blocks) if blocks else weight.new_zeros(0, FEATURES)

    def save(self, path: str | Path) -> None:
        """Write weights and accuracy to one safetensors file, in one atomic step.

        Raises:
            RunError: the disk is full or the file cannot be written.
        """
        from vaekern.storage.tensors import save_tensors

        header = {
            "sample_shape": list(self.sample_shape),
            "classes": self.classes,
            "name": self.name,
            "accuracy": self.accuracy,
        }
        save_tensors(Path(path), self.state_dict(), FILE_KIND, header)

    @classmethod
    def load(cls, path: str | Path) -> FeatureClassifier:
        """The classifier that :meth:`save` wrote.

        Raises:
            RunError: no such file, a damaged one, or one from somewhere else.
        """
        from vaekern.storage.errors import RunError
        from vaekern.storage.tensors import load_state, load_tensors

        state, header = load_tensors(Path(path), FILE_KIND)
        try:
            channels, height, width = map(int, header["sample_shape"])
            classifier = cls((channels, height, width), int(header["classes"]), str(header["name"]))
            classifier.accuracy = float(header["accuracy"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{path} has a header that does not describe a feature classifier ({error!r}); "
                f"remove it to train a new one"
            ) from error
        load_state(classifier, state, Path(path))
        return classifier.eval()


def fit_feature_classifier(dataset: Dataset, *, seed: int = 0) -> FeatureClassifier:
    """Train a classifier on a labelled image data set, for its features.

    An MLP for images under 16 pixels, three strided convolutions above; Adam with a cosine
    schedule. It takes seconds on a CPU. The same seed gives the same classifier on the same
    machine; the global random state is left alone.

    Args:
        dataset: images with labels for training and testing.
        seed: of the weights and the order of the batches.

    Returns:
        The classifier in eval mode, with its test accuracy in ``accuracy``.

    Raises:
        ValueError: data that is not images, has no labels, or has fewer than two classes.

    Example:
        >>> from vaekern.data import load
        >>> digits = load("digits")
        >>> classifier = fit_feature_classifier(digits)
        >>> classifier.metric, classifier.accuracy > 0.95, classifier.features(digits.test).shape
        ('FD-digits', True, torch.Size([180, 64]))
    """
    if dataset.kind != "image":
        raise ValueError(
            f"dataset must hold images to train a feature classifier, got {dataset.kind}s; "
            f"compare vectors directly with frechet_distance"
        )
    if dataset.train_labels is None or dataset.test_labels is None:
        raise ValueError(
            f"dataset {dataset.name!r} must have labels to train a feature classifier, got none; "
            f"use a labelled source, such as digits or a folder with one subfolder per class"
        )
    # Labels may be any integers: the classes are those that the training set holds.
    values, targets = torch.unique(dataset.train_labels, return_inverse=True)
    if len(values) < 2:
        raise ValueError(
            f"dataset {dataset.name!r} must have at least 2 classes to train a feature classifier, "
            f"got {len(values)}; sort its images into one subfolder per class"
        )
    channels, height, width = dataset.sample_shape
    threads = torch.get_num_threads()
    # Batches this small gain nothing from more threads, and where other programs compete for the
    # cores each operator waits for the slowest of them: 2 seconds were seen to become 60.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = FeatureClassifier((channels, height, width), len(values), dataset.name)
            _train(classifier, dataset.train, targets)
    finally:
        torch.set_num_threads(threads)
    classifier.eval()
    features = classifier.features(in_memory(dataset.train, SCALED_BY))
    deviation = features.double().var(0).mean().sqrt()
    classifier.scale.copy_(deviation)
    with torch.no_grad():
        predicted = torch.cat([classifier(part).argmax(1) for part in dataset.test.split(1024)])
    classifier.accuracy = float((values[predicted] == dataset.test_labels).double().mean())
    return classifier


def _train(classifier: FeatureClassifier, images: Samples, targets: Tensor) -> None:
    batches = -(-len(images) // BATCH)
    steps = min(EPOCHS * batches, STEPS)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    order: list[Tensor] = []
    for _ in range(steps):
        if not order:
            order = list(torch.randperm(len(images)).split(BATCH))
        rows = order.pop()
        loss = F.cross_entropy(classifier(images[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
