"""The fault of jax issue 39103, and that `samjax.xla_flags` removes it without doing harm."""

import os
import platform
import subprocess
import sys

import jaxlib
import pytest

from samjax import xla_flags

pytestmark = pytest.mark.optimized

ROWS = 32769
REPRODUCTION = f"""
import jax, jax.numpy as jnp
i = jnp.arange({ROWS}, dtype=jnp.float32)
x = jnp.stack([i, 0 * i, 0 * i], axis=1)
matrix = jnp.eye(3, dtype=jnp.float32)
f = jax.jit(lambda x: jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(x))
print(float(f(x)[-1]))
"""
RIGHT = float((ROWS - 1) ** 2)
SETTING = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
CONFIGURE = "from samjax import xla_flags; xla_flags.configure()\n"
SHOW = "import os; print(repr(os.environ.get('XLA_FLAGS')))\n"
STATE = "import jax; print(jax._src.xla_bridge.backends_are_initialized())\n"

affected = pytest.mark.skipif(
    jaxlib.__version__ not in xla_flags._AFFECTED,
    reason=f"jaxlib {jaxlib.__version__} does not have the fault, so nothing is set",
)


@affected
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="seen on x86-64 only")
def test_the_fault_is_there_without_the_flag():
    assert float(run(REPRODUCTION)) != RIGHT


def test_the_sum_is_right_after_configure():
    assert float(run(CONFIGURE + REPRODUCTION)) == RIGHT


def test_the_sum_is_right_after_importing_samjax():
    assert float(run("import samjax\n" + REPRODUCTION)) == RIGHT


@affected
@pytest.mark.parametrize(
    ("shape_a", "shape_b", "axis"),
    [((3, 1, 2, 2, 8, 8, 8),) * 2 + (3,), ((10, 4, 6, 1, 1, 1, 1, 1), (10, 4, 6) + (9,) * 5, 2)],
    ids=["issue 40412", "issue 39257"],
)
def test_multiply_reduce_of_high_rank_does_not_crash(shape_a, shape_b, axis):
    code = f"""
import jax, jax.numpy as jnp
total = jax.jit(lambda a, b: jnp.sum(a * b, axis={axis}))
print(float(total(jnp.ones({shape_a}), jnp.ones({shape_b})).max()))
"""
    assert float(run(CONFIGURE + code)) == shape_b[axis]


@affected
def test_it_appends_to_flags_that_are_set():
    other = "--xla_cpu_enable_fast_math=false"
    assert run(CONFIGURE + SHOW, flags=other) == repr(f"{other} {SETTING}")


@affected
def test_it_sets_flags_where_there_are_none_and_only_once():
    assert run(CONFIGURE + CONFIGURE + SHOW) == repr(SETTING)
    assert run(CONFIGURE + SHOW, flags=" ") == repr(SETTING)


@pytest.mark.parametrize("value", ["", "+reduce", "individual_dot"])
def test_it_never_overwrites(value):
    flags = f"--xla_cpu_experimental_ynn_fusion_type={value} --xla_cpu_enable_fast_math=false"
    assert run(CONFIGURE + SHOW, flags=flags) == repr(flags)


@affected
def test_it_warns_when_it_is_too_late():
    code = "import jax; jax.devices()\n" + CONFIGURE + SHOW
    output, errors = run(code, with_errors=True)
    assert output == "None"
    assert errors.count("RuntimeWarning") == 1
    assert "39103" in errors and "Import samjax first" in errors and SETTING in errors


@affected
def test_importing_jax_first_is_not_too_late():
    output, errors = run("import jax\n" + CONFIGURE + SHOW, with_errors=True)
    assert (output, errors) == (repr(SETTING), "")


def test_it_does_not_warn_when_the_user_has_chosen():
    code = "import jax; jax.devices()\n" + CONFIGURE
    assert run(code, flags=SETTING, with_errors=True)[1] == ""


@affected
def test_a_file_of_flags_is_left_alone(tmp_path):
    file = tmp_path / "flags"
    file.write_text("--xla_cpu_enable_fast_math=false\n")
    output, errors = run(CONFIGURE + SHOW, flags=str(file), with_errors=True)
    assert output == repr(str(file))
    assert "names the file" in errors and SETTING in errors

    file.write_text(f"{SETTING}\n")
    output, errors = run(CONFIGURE + REPRODUCTION, flags=str(file), with_errors=True)
    assert (float(output), errors) == (RIGHT, "")


def test_an_unknown_jaxlib_is_left_alone():
    code = "import jaxlib; jaxlib.__version__ = '9.9.9'\n" + CONFIGURE + SHOW
    assert run(code) == "None"


@affected
def test_it_works_where_jax_has_lost_the_private_function():
    code = "import jax; del jax._src.xla_bridge.backends_are_initialized\n" + CONFIGURE + SHOW
    assert run(code) == repr(SETTING)


def test_importing_starts_no_backend():
    assert run(CONFIGURE + STATE) == "False"
    assert run("import samjax\n" + STATE) == "False"


def run(code: str, *, flags: str | None = None, with_errors: bool = False):
    """What a fresh Python prints, on the CPU and with exactly these XLA_FLAGS."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    if flags is not None:
        env["XLA_FLAGS"] = flags
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"ended with {result.returncode}: {result.stderr[-2000:]}"
    output = result.stdout.strip()
    return (output, result.stderr.strip()) if with_errors else output
