"""The dSprites file of Matthey et al. 2017, with its factors of variation.

dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz holds 'imgs', uint8 [737280, 64, 64] of 0 and 1, and
'latents_values' [737280, 6]: colour, shape, scale, orientation, x, y. What else is in it is not
read; its 'metadata' could only be unpickled.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vaekern.data.dataset import Dataset
from vaekern.data.generated import generated_dataset
from vaekern.data.npy import UnfitError, read_arrays
from vaekern.data.resize import fit_square
from vaekern.data.rows import ByteRows, scaled
from vaekern.data.source import ReadOptions, existing
from vaekern.data.sprite_grid import FACTORS

IMAGES, VALUES = "imgs", "latents_values"


def read_dsprites(argument: str, options: ReadOptions) -> Dataset:
    """All images, a share of them held out; the one colour is no factor.

    They stay in memory as bytes where as float32 they would take too much of it.
    """
    path = existing(argument, directory=False)

    def roles(names: list[str]) -> dict[str, str]:
        missing = [name for name in (IMAGES, VALUES) if name not in names]
        if missing:
            raise UnfitError(
                f"{path} is not the dSprites file: it must hold {IMAGES} and {VALUES}, got "
                f"{', '.join(names) or 'nothing'}; give dsprites_ndarray_...npz"
            )
        return {name: name for name in (IMAGES, VALUES)}

    arrays = read_arrays(path, roles)
    if IMAGES not in arrays:
        raise ValueError(f"{path} is not the dSprites file but one array; give its .npz")
    images, values = arrays[IMAGES].array, arrays[VALUES].array
    wanted = f"{IMAGES} uint8 [N, H, W] of 0 and 1, and {VALUES} [N, 6] of finite numbers"
    if (
        images.dtype != np.uint8
        or images.ndim != 3
        or values.shape != (len(images), 1 + len(FACTORS))
        or values.dtype.kind != "f"
        or not np.isfinite(values).all()
        or (images.size and images.max() > 1)
    ):
        raise ValueError(
            f"{path} is not the dSprites file: it must hold {wanted}, got {images.dtype} "
            f"{list(images.shape)} and {values.dtype} {list(values.shape)}; download it again"
        )
    levels = torch.from_numpy(images).mul_(255).unsqueeze(1)
    factors = torch.from_numpy(values[:, 1:]).float()
    factors[:, 0] -= 1  # shapes from 0 on, as those of `sprites`

    def change(batch: Tensor) -> Tensor:
        return fit_square(batch, options.image_size)

    side = options.image_size or images.shape[1]
    streams = options.streams((len(images), 1, side, side))
    return generated_dataset(
        "dsprites",
        "image",
        ByteRows(levels, change) if streams else change(scaled(levels)),
        factors,
        options,
        labels=factors[:, 0].long(),
        factor_names=FACTORS,
        class_factors=("shape",),
    )
