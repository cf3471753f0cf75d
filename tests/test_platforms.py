"""Choices of a program within choices of a program."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax import SamConfig, inference, platforms
from samjax.platforms import (
    bfloat16_pays,
    lowered_for,
    multiplies_bfloat16,
    platform_dependent,
    platform_of,
)


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


@pytest.mark.parametrize("platform, said", [("cpu", 112.0), ("cuda", 223.0), (None, 112.0)])
def test_where_the_platform_is_known_its_programs_alone_are_traced(nested, traced, platform, said):
    @functools.partial(jax.jit, static_argnums=0)
    def function(platform, x):
        with lowered_for(platform):
            return nested(x)

    assert function(platform, 1.0) == said
    assert len(traced) == (6 if platform is None else 3)
    assert function("cpu", 1.0) == 112.0  # what was traced for another is not taken
    traced.clear()
    jax.jit(nested)(1.0)
    assert len(traced) == 6


def test_a_platform_is_known_outside_of_a_trace_alone():
    seen = []

    @jax.jit
    def inside(x, y):
        seen.append(platform_of({"x": x}, np.ones(3)))
        return x + y

    inside(1.0, 2.0)
    jax.vmap(lambda x: seen.append(platform_of(x)))(jnp.ones(2))
    assert seen == [None, None]
    device = jax.devices()[0]
    for given in (np.ones(3), jnp.ones(3), jax.device_put(np.ones(3), device), {}):
        assert platform_of({"a": [given]}) == "cpu"
    for default in (device, "cpu"):
        with jax.default_device(default):
            assert platform_of(np.ones(3)) == "cpu"


def test_what_runs_here_is_traced_for_here_and_what_is_exported_for_anywhere(monkeypatch):
    """Encoder and decoder of a call have no branch for other platforms in them; those of a
    caller's own program do."""
    config = SamConfig.tiny(128, decoder_depth=1)
    params = inference.init_params(config)
    images = np.zeros((1, 128, 128, 3), np.float32)
    asked = []
    choose = jax.lax.platform_dependent
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, **kw: asked.append(1) or choose(*args, **kw)
    )
    here = inference.encode_images(params, images, config=config)
    assert not asked
    mine = jax.jit(lambda images: inference.encode_images(params, images, config=config))
    np.testing.assert_allclose(mine(images), here, rtol=0, atol=1e-5 * float(jnp.abs(here).max()))
    assert asked


def test_random_parameters_within_a_callers_program():
    """Which has options of its own for XLA; the numbers are the same but for rounding."""
    config = SamConfig.tiny(128, decoder_depth=1)
    alone = inference.init_params(config, seed=3)
    within = jax.jit(lambda: inference.init_params(config, seed=3)["prompt_encoder"])()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
        within, alone["prompt_encoder"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "vendor, flags, pays",
    [
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx2 fma", False),
    ],
)
def test_where_bfloat16_is_multiplied_as_such(vendor, flags, pays, tmp_path, monkeypatch):
    cpuinfo = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: some\nflags\t\t: fpu {flags}\n"
    assert bfloat16_pays(cpuinfo) == pays
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    for path, expected in ((tmp_path / "cpuinfo", pays), (tmp_path / "none", False)):
        monkeypatch.setattr(platforms, "CPUINFO", path)
        assert multiplies_bfloat16.__wrapped__() == expected  # not kept for other tests
