"""The device that a name such as "cpu", "cuda:1" or 0 stands for."""

import jax

PLATFORMS = ("cpu", "gpu", "cuda", "tpu")


def find_device(device: str | int | None) -> jax.Device | None:
    """A device of JAX's; None, for None and "", leaves the choice to JAX.

    A name is a platform, alone or with a number ("cuda:1"); a number alone counts GPUs. Raises
    `ValueError` for other names and for a device that is not there.
    """
    if device is None or device == "":
        return None
    text = str(device)
    platform, _, index = ("gpu", "", text) if text.isdecimal() else text.partition(":")
    if platform not in PLATFORMS or not (index or "0").isdecimal() or text.endswith(":"):
        raise ValueError(
            f'device is {device!r}; use one of {PLATFORMS}, with a number if need be ("cuda:1"), '
            "or nothing for JAX's own choice."
        )
    try:
        found = jax.devices(platform)
    except RuntimeError:
        raise ValueError(
            f"device {device}: JAX finds none here, only {jax.default_backend()}"
        ) from None
    if int(index or 0) >= len(found):
        raise ValueError(f"device {device}: JAX finds only {len(found)} of {platform} here")
    return found[int(index or 0)]
