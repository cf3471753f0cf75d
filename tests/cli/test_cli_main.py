"""The program itself: help, errors in one line, and what it imports."""

import subprocess
import sys
from pathlib import Path

import pytest

import samjax
from samjax import cli
from samjax.cli import common
from samjax.models import SamConfig

COMMANDS = ("convert", "info", "predict", "everything", "eval")


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"samjax {samjax.__version__}\n"
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n    {command}" in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: samjax {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "COMMAND"),
        (["segment"], "invalid choice: 'segment'"),
        (["everything", "a.jpg"], "required: --output (see"),
        (["everything", "--points-per-side", "x"], "--points-per-side: invalid int value: 'x'"),
        (
            ["everything", "a.jpg", "--overwrite", "--resume"],
            "--resume: not allowed with argument --overwrite",
        ),
        (["convert", "a", "b", "--to", "onnx"], "invalid choice: 'onnx'"),
    ],
)
def test_wrong_usage_is_one_line(argv, message, capsys):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("samjax: error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_of_the_user(tmp_path, capsys, debug):
    assert cli.main(["info", str(tmp_path / "nowhere"), *["--debug"] * debug]) == 2
    err = capsys.readouterr().err
    assert err.endswith(f"samjax: error: There is no {tmp_path / 'nowhere'}.\n")
    assert ("Traceback" in err) == debug


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(28, "No space left on device", "x.png"), "No space left on device: x.png"),
        (OSError(28, "cannot write x.png"), "cannot write x.png"),
        (ImportError("needs torch"), "needs torch"),
        (ValueError("two\nlines"), "two\nlines"),
    ],
)
def test_errors_are_told_in_their_own_words(monkeypatch, capsys, error, message):
    def fail(args):
        raise error

    monkeypatch.setattr(cli.info, "run", fail)
    assert cli.main(["info", "x"]) == 2
    assert capsys.readouterr().err == f"samjax: error: {message}\n"


def test_errors_of_ours_keep_their_traceback(monkeypatch):
    def fail(args):
        raise KeyError("a bug")

    monkeypatch.setattr(cli.info, "run", fail)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["info", "x"])


def test_an_interrupt(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.info, "run", interrupt)
    assert cli.main(["info", "x"]) == 130
    assert capsys.readouterr().err == "samjax: interrupted\n"


ALONE = """
import sys, types
package = types.ModuleType("samjax")
package.__path__, package.__version__ = [sys.argv[1]], "0"
sys.modules["samjax"] = package
from samjax.cli import main
try:
    main(["everything", "--help"])
finally:
    print([name for name in ("jax", "torch", "cv2", "orbax") if name in sys.modules])
"""


def test_help_imports_nothing_heavy():
    """The command line on its own, without what `samjax/__init__.py` imports."""
    command = [sys.executable, "-c", ALONE, str(Path(samjax.__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


WITHOUT_TORCH = """
import sys
from samjax.cli import main
code = main(sys.argv[1:])
print(code, "torch" in sys.modules, "samjax.convert" in sys.modules)
"""


def test_predicting_from_an_orbax_folder_needs_no_torch(checkpoint, draw, tmp_path):
    options = ["--model", str(checkpoint), "--point", "20", "30", "--output", str(tmp_path / "o")]
    command = [sys.executable, "-c", WITHOUT_TORCH, "predict", str(draw("a.png")), *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "0 False False", result.stderr


@pytest.mark.parametrize(
    "program",
    [[sys.executable, "-m", "samjax"], [str(Path(sys.executable).with_name("samjax"))]],
)
def test_the_program_is_installed(program):
    result = subprocess.run([*program, "info", "nowhere"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "samjax: error: There is no nowhere. Nor is it a published model's name; `samjax models` "
        "lists those.\n"
    )


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_published_sizes_are_recognised(name):
    config = getattr(SamConfig, name)()
    assert common.architecture(config) == f"ViT-{name[-1].upper()}"
    assert common.architecture(SamConfig.tiny()) is None


@pytest.mark.parametrize(
    "size, text",
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "2 kB"), (375e6, "375 MB"), (2.56e9, "2.56 GB")],
)
def test_sizes_for_people(size, text):
    assert common.size_text(int(size)) == text
