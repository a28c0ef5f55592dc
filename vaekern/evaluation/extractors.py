"""What turns images into features for the distances between sets of them, and what it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vaekern.evaluation.features import FEATURES, FeatureClassifier
from vaekern.evaluation.inception import FEATURES as INCEPTION_FEATURES
from vaekern.evaluation.inception import SIDE, load_inception

# Images at once: 299 x 299 pixels in Inception's first layers take some 15 MB each.
INCEPTION_BATCH = 32
BATCH = 512


@dataclass(frozen=True)
class Extractor:
    """Features of images, and the words that must stand beside every number made of them.

    Attributes:
        features: images [N, C, H, W] in [0, 1] -> [N, d].
        frechet: what a Frechet distance in these features is called: FID only with Inception's.
        kernel: what a kernel distance in them is called: KID only with Inception's.
        name: which network, with which weights.
        preprocessing: what happens to the images before it.
        rounded: whether images are rounded to 8 bits first, as a file would hold them.
        batch: images at once.

    Example:
        >>> mean = Extractor(lambda x: x.mean((2, 3)), "FD-colours", "KD-colours", "mean colour")
        >>> mean(torch.ones(3, 3, 8, 8)).shape
        torch.Size([3, 3])
    """

    features: Callable[[Tensor], Tensor] = field(repr=False)
    frechet: str
    kernel: str
    name: str
    preprocessing: str = "none"
    rounded: bool = False
    batch: int = BATCH

    def __call__(self, images: Tensor, *, stretch: bool = False) -> Tensor:
        """Features of images [N, C, H, W] in [0, 1], [N, d].

        Args:
            images: on the extractor's device.
            stretch: stretch each image to [0, 1] first, from its own smallest and largest value,
                and leave the rounding out.
        """
        if stretch:
            images = stretch_images(images)
        elif self.rounded:
            images = (images * 255).round().clamp(0, 255) / 255
        with torch.no_grad():
            return torch.cat([self.features(part) for part in images.split(self.batch)])


def stretch_images(images: Tensor) -> Tensor:
    """Each image from its own smallest and largest value to [0, 1]; a constant one becomes 0.

    The code of Dai & Wipf does this to generated and reconstructed images, and not to real ones,
    before it computes the FID.
    """
    flat = images.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return ((flat - low[:, None]) / span[:, None]).view_as(images)


def classifier_extractor(classifier: FeatureClassifier) -> Extractor:
    """The features of a small classifier that was trained on the data set itself."""
    name = classifier.name
    return Extractor(
        classifier.features,
        classifier.metric,
        f"KD-{name}",
        f"{FEATURES} features of a classifier of {name}, test accuracy {classifier.accuracy:.1%}",
    )


def inception_extractor(path: str | Path, *, device: torch.device | str = "cpu") -> Extractor:
    """Inception's third pooling layer, with the weights of a file: the features of FID and KID.

    Grey images become three equal channels, values are rounded to 8 bits, and images resized to 299
    x 299 as TensorFlow 1 does it: as in the code of Heusel et al., of Dai & Wipf (but for the
    rounding) and of torch-fidelity.

    Args:
        path: of the weights, see `load_inception`.
        device: where it runs.

    Raises:
        ValueError: no such file, or one that does not hold these weights.
    """
    network = load_inception(path).to(device)

    def features(images: Tensor) -> Tensor:
        wide = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        result: Tensor = network(255 * wide.to(device))
        return result

    return Extractor(
        features,
        "FID",
        "KID",
        f"{INCEPTION_FEATURES} features of Inception, {Path(path).name}",
        f"8 bits, {SIDE} x {SIDE} as TensorFlow 1 resizes",
        rounded=True,
        batch=INCEPTION_BATCH,
    )


def module_extractor(module: nn.Module, name: str, *, batch: int = BATCH) -> Extractor:
    """The features of any network, images [N, C, H, W] in [0, 1] -> [N, d].

    Args:
        module: put into evaluation mode.
        name: what the distances are called after: FD-NAME and KD-NAME.
        batch: images at once.

    Example:
        >>> flat = module_extractor(nn.Flatten(), "pixels")
        >>> flat.frechet, flat(torch.rand(5, 1, 2, 2)).shape
        ('FD-pixels', torch.Size([5, 4]))
    """
    module = module.eval()
    parameter = next(module.parameters(), None)

    def features(images: Tensor) -> Tensor:
        result: Tensor = module(images if parameter is None else images.to(parameter))
        return result

    return Extractor(features, f"FD-{name}", f"KD-{name}", f"features of {name}", batch=batch)
