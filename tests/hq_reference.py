"""`segment_anything_hq`'s model on arrays, and how near is near."""

import numpy as np
import torch


def close(ours, theirs, relative):
    """Within `relative` of the largest value there is."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max())


def channels_last(tensor):
    return np.moveaxis(tensor.numpy(), 1, -1)


def encode(reference, images):
    """The reference's embedding and intermediate features of pictures, channels last."""
    return reference.image_encoder(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))


def fuse(reference, encoded):
    """What its decoder makes of a picture before it looks at a prompt: two parts of a sum."""
    embedding, intermediate = encoded
    decoder = reference.mask_decoder
    of_early = decoder.compress_vit_feat(intermediate[0].permute(0, 3, 1, 2))
    return decoder.embedding_encoder(embedding), of_early


def decode(reference, encoded, coords, multimask_output, hq_token_only):
    """Its logits and IoUs for one foreground click a prompt, `coords` (picture, prompt, 2)."""
    embedding, intermediate = encoded
    image_pe = reference.prompt_encoder.get_dense_pe()
    masks, ious = [], []
    for picture, points in enumerate(torch.from_numpy(np.array(coords))):
        sparse, dense = reference.prompt_encoder(
            (points[:, None], torch.ones(len(points), 1)), None, None
        )
        one = slice(picture, picture + 1)
        found = reference.mask_decoder(
            embedding[one], image_pe, sparse, dense, multimask_output, hq_token_only,
            [features[one] for features in intermediate],
        )  # fmt: skip
        masks.append(found[0].numpy())
        ious.append(found[1].numpy())
    return np.array(masks), np.array(ious)
