"""The program `samjax`. JAX is imported only when a command runs."""

import argparse
import contextlib
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

from samjax import __version__
from samjax.allocator import tune_allocator
from samjax.cache import keep_compiled_programs
from samjax.cli import annotate, batch, convert, eval, everything, info, models, predict, train

_COMMANDS = (convert, models, info, predict, everything, annotate, batch, eval, train)


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code. Without `argv` this is the program itself, and
    the process is its own: it keeps compiled programs on disk, and freed memory.

    0 for success; 1 where a part failed and was reported; 2 for what the user can put right, told
    in a line on stderr, with a traceback only under --debug; 130 after Ctrl-C. Errors of any other
    kind are raised.
    """
    try:
        args = _parser().parse_args(argv)
    except _UsageError as error:
        return _fail(str(error))
    if argv is None:
        _own_the_process()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            with _compiles_shown() if args.show_compiles else contextlib.nullcontext():
                return args.run(args)
    except (ValueError, OSError, ImportError) as error:
        if args.debug:
            traceback.print_exc()
        return _fail(_message(error))
    except KeyboardInterrupt:
        print("samjax: interrupted", file=sys.stderr)
        return 130


def _own_the_process() -> None:
    tune_allocator()
    try:
        keep_compiled_programs()
    except OSError as error:
        _show_warning(
            f"compiled programs are not kept: {_message(error)}; set SAMJAX_CACHE to a folder that "
            "can be written",
            UserWarning, "", 0,
        )  # fmt: skip


@contextlib.contextmanager
def _compiles_shown() -> Iterator[None]:
    """Prints each program on stderr, and what they took at the end."""
    from tqdm import tqdm

    from samjax.compiles import Compiled, compiles_reported

    compiled: list[Compiled] = []

    def show(program: Compiled) -> None:
        compiled.append(program)
        tqdm.write(f"samjax: {program}", file=sys.stderr)

    try:
        with compiles_reported(show):
            yield
    finally:
        kept = [program for program in compiled if program.from_cache]
        fresh = [program for program in compiled if not program.from_cache]
        print(
            f"samjax: {len(fresh)} programs compiled in {sum(p.seconds for p in fresh):.1f} s, "
            f"{len(kept)} from the cache in {sum(p.seconds for p in kept):.1f} s",
            file=sys.stderr,
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="samjax",
        description="Segment Anything in JAX.",
        epilog="samjax COMMAND --help describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"samjax {__version__}")
    parser.set_defaults(debug=False, show_compiles=False)
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    shared.add_argument(
        "--show-compiles", action="store_true",
        help="print each program that JAX compiles, its arguments and the seconds it takes",
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands, shared)
    return parser


def _fail(message: str) -> int:
    print(f"samjax: error: {message}", file=sys.stderr)
    return 2


def _message(error: Exception) -> str:
    """An `OSError` by its own words, without the number in front."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"samjax: warning: {message}", file=sys.stderr)
