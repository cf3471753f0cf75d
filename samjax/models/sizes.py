"""Checks that configs share."""


def check_divides(name: str, value: int, by_name: str, by: int) -> None:
    """Raises `ValueError` for a `value` that is not a positive multiple of `by`."""
    if value < 1 or by < 1 or value % by:
        raise ValueError(
            f"{name} is {value}; it has to be a positive multiple of {by_name} ({by})."
        )
