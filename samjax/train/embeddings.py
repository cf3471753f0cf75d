"""Image embeddings on disk, for training behind a frozen image encoder.

A file for each picture: its name is the SHA-256 of the picture's bytes, its folder's that of the
encoder. So a changed picture or encoder never meets an old embedding, several runs share a folder,
and a pass that was interrupted goes on.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from samjax import inference
from samjax.checkpoint import Model, write_beside
from samjax.datasets import BadRecordError, Source
from samjax.embeddings import encoder_digest
from samjax.train.examples import ExampleSettings, fitted_image
from samjax.types import HqEmbeddings


class EmbeddingCache:
    """float32 embeddings (H, W, D) of whole pictures, as `encode_images` gives them.

    Raises ValueError for an HQ model, whose fused features are a part of what is trained.
    """

    def __init__(self, folder: Path, model: Model):
        if model.config.hq:
            raise ValueError(
                "embeddings of an HQ model cannot be kept: its decoder takes features from early "
                "in the image encoder too; train it without embedding_cache"
            )
        self.folder = Path(folder) / encoder_digest(model)[:32]

    def path(self, picture: Path) -> Path:
        digest = hashlib.sha256(picture.read_bytes()).hexdigest()
        return self.folder / f"{digest[:32]}.npy"

    def read(self, picture: Path) -> Float32[np.ndarray, "H W D"]:
        """Raises FileNotFoundError for a picture that `fill` has not seen."""
        path = self.path(picture)
        if not path.exists():
            raise FileNotFoundError(
                f"{picture} has no embedding in {self.folder}: it has changed since they were "
                "computed; begin the run again"
            )
        return np.load(path, allow_pickle=False)

    def fill(
        self,
        model: Model,
        sources: Sequence[Source],
        settings: ExampleSettings,
        *,
        progress: bool = False,
    ) -> int:
        """Computes what is missing, and returns the number; of several processes each does its
        share. Pictures that cannot be read are left to the loader, which reports them. Raises
        OSError where the folder cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        computed = 0
        records = [(source, i) for source in sources for i in range(len(source))]
        share = records[jax.process_index() :: jax.process_count()]
        shown = progress and jax.process_index() == 0
        for source, index in tqdm(
            share, desc="image embeddings", unit="picture", disable=not shown, file=sys.stderr
        ):
            try:
                record = source.read(index)
                path = self.path(record.path)
                if path.exists():
                    continue
                image = fitted_image(record, settings)
            except (BadRecordError, FileNotFoundError):
                continue
            embedding = inference.encode_images(model.params, image[None], config=model.config)
            assert not isinstance(embedding, HqEmbeddings)
            with write_beside(path) as new, new.open("wb") as file:
                np.save(file, np.asarray(embedding[0], np.float32))
            computed += 1
        return computed
