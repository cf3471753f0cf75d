"""Choices of a program within choices of a program."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from samjax.platforms import platform_dependent


@pytest.fixture
def traced():
    return Counter()


@pytest.fixture
def nested(traced):
    """Three choices, each within the one before; the CPU's add 1, 10 and 100, others 2, 20, 200."""

    def choice(x, tens):
        def of(platform, number):
            def program(x):
                traced[platform, tens] += 1
                return choice(x + number * 10**tens, tens + 1)

            return program

        return platform_dependent(x, cpu=of("cpu", 1), default=of("other", 2)) if tens < 3 else x

    return lambda x: choice(x, 0)


def test_each_program_is_traced_once(nested, traced):
    assert jax.jit(nested)(1.0) == 112.0
    assert traced == {(platform, tens): 1 for platform in ("cpu", "other") for tens in range(3)}


@pytest.mark.parametrize("platform, own, others", [("cpu", 1, 2), ("tpu", 2, 1), ("cuda", 2, 1)])
def test_a_platform_gets_its_own_all_the_way_down(nested, platform, own, others):
    text = jax.jit(nested).trace(1.0).lower(lowering_platforms=(platform,)).as_text()
    for factor in (10.0, 100.0):
        assert f"{own * factor:e}" in text
        assert f"{others * factor:e}" not in text


def test_gradients_and_maps_go_through(nested):
    assert jax.grad(lambda x: nested(x) ** 2)(1.0) == 224.0
    assert jax.vmap(nested)(jnp.arange(3.0)).tolist() == [111.0, 112.0, 113.0]


def test_after_an_error_in_a_branch_both_are_traced_again(nested, traced):
    def fails(x):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        jax.jit(lambda x: platform_dependent(x, cpu=fails, default=fails))(1.0)
    jax.jit(nested)(1.0)
    assert len(traced) == 6
