"""The engine of the converter: a table of names, read in both directions.

A table is for one foreign format. Each of its rows pairs the names that format gives to some arrays
with ours:

    Row("blocks.{i}.{name:qkv|proj}.weight", "blocks.{i}.attn.{name}.kernel", permute(1, 0))

`{i}` stands for a number and `{name:qkv|proj}` for one of the words; all else is literal. Either
side becomes an anchored regular expression. The rows stand in the order of the foreign format,
which is the order that `to_foreign` gives back.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from samjax.models.params import describe

_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^}]+))?\}")


class Transform(NamedTuple):
    """Takes an array from the foreign layout to ours, and back. Raises `ValueError` if it cannot.

    Both have to be exact, and to work on arrays of zero strides (only their shape is looked at).
    """

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


def permute(*axes: int) -> Transform:
    """Axis `i` of our array is axis `axes[i]` of the foreign one."""
    inverse = [axes.index(i) for i in range(len(axes))]
    return Transform(functools.partial(_transpose, axes), functools.partial(_transpose, inverse))


def _transpose(axes: Sequence[int], x: np.ndarray) -> np.ndarray:
    if x.ndim != len(axes):
        raise ValueError(f"{x.shape}, expected {len(axes)} axes")
    return x.transpose(axes)


def _identity(x: np.ndarray) -> np.ndarray:
    return x


SAME = Transform(_identity, _identity)


class Row(NamedTuple):
    source: str
    target: str
    transform: Transform = SAME


class Match(NamedTuple):
    """A row, and the two names it pairs for certain values of its placeholders."""

    row: int
    source: str
    target: str
    values: dict[str, str]


class Table:
    """Rows that are ready to be looked up. Raises `ValueError` for rows that cannot be reversed."""

    def __init__(self, rows: Iterable[Row]):
        self.rows = tuple(rows)
        self._words = [dict(_PLACEHOLDER.findall(row.source)) for row in self.rows]
        for row, words in zip(self.rows, self._words, strict=True):
            if set(dict(_PLACEHOLDER.findall(row.target))) != set(words):
                raise ValueError(f"{row.source} and {row.target} have different placeholders.")
        both = list(zip(self.rows, self._words, strict=True))
        self._sources = [_pattern(row.source, words) for row, words in both]
        self._targets = [_pattern(row.target, words) for row, words in both]

    def find_source(self, source: str) -> Match | None:
        """The row for a foreign name. Raises `ValueError` if there are several."""
        return self._find(source, self._sources)

    def find_target(self, target: str) -> Match | None:
        """The row for one of our names. Raises `ValueError` if there are several."""
        return self._find(target, self._targets)

    def _find(self, name: str, patterns: list[re.Pattern]) -> Match | None:
        found = [(i, m.groupdict()) for i, p in enumerate(patterns) if (m := p.fullmatch(name))]
        if len(found) > 1:
            rows = ", ".join(self.rows[i].source for i, _ in found)
            raise ValueError(f"{name} matches {len(found)} rows of the table: {rows}.")
        for i, values in found:
            row = self.rows[i]
            return Match(i, _fill(row.source, values), _fill(row.target, values), values)
        return None

    def missing(self, matches: Mapping[str, Match]) -> list[str]:
        """Foreign names that `matches` (by foreign name) lacks, judged by the names alone.

        Every row has to be filled, for each word and for every number up to the highest that
        occurs at that place of any name (or as many as there are names, if that is less). In the
        table's order.
        """
        counts: dict[str, int] = {}
        for match in matches.values():
            for place, number in self._numbers(match):
                counts[place] = max(counts.get(place, 0), min(number + 1, len(matches)))
        due = [name for i in range(len(self.rows)) for name in self._expand(i, counts)]
        absent = (self.find_source(name) for name in due if name not in matches)
        return [match.source for match in sorted(filter(None, absent), key=self.order)]

    def _numbers(self, match: Match) -> list[tuple[str, int]]:
        """Where numbers stand in a foreign name: the text before each of them, and the number."""
        template = self.rows[match.row].source
        return [
            (_fill(template[: placeholder.start()], match.values), int(match.values[name]))
            for placeholder in _PLACEHOLDER.finditer(template)
            if not self._words[match.row][name := placeholder[1]]
        ]

    def _expand(self, row: int, counts: dict[str, int]) -> list[str]:
        names = [self.rows[row].source]
        for key, words in self._words[row].items():
            names = [
                _fill(name, {key: value})
                for name in names
                for value in (
                    words.split("|")
                    if words
                    else map(str, range(counts.get(_PLACEHOLDER.split(name)[0], 1)))
                )
            ]
        return names

    def order(self, match: Match) -> tuple[int, ...]:
        """Sorts names into the order of the table, with all of one number's rows together."""
        template, words = self.rows[match.row].source, self._words[match.row]
        key: list[int] = []
        for placeholder in _PLACEHOLDER.finditer(template):
            value, choices = match.values[placeholder[1]], words[placeholder[1]]
            key.append(self._first_row(template[: placeholder.end()]))
            key.append(choices.split("|").index(value) if choices else int(value))
        return (*key, match.row)

    def _first_row(self, prefix: str) -> int:
        return next(i for i, row in enumerate(self.rows) if row.source.startswith(prefix))


class Translation(NamedTuple):
    """Arrays and the rows that gave them, by our name, and what did not fit, for `describe`."""

    arrays: dict[str, np.ndarray]
    matches: dict[str, Match]
    problems: dict[str, list[str]]


def to_ours(table: Table, arrays: Mapping[str, np.ndarray]) -> Translation:
    """Every foreign array that the table knows, as a view in our layout.

    Raises `ValueError` if two rows, or two arrays, claim the same name.
    """
    found = {name: match for name in arrays if (match := table.find_source(name))}
    problems = {
        "unexpected": [name for name in arrays if name not in found],
        "missing": table.missing(found),
        "of the wrong shape": [],
    }
    translated: dict[str, np.ndarray] = {}
    matches: dict[str, Match] = {}
    for name, match in found.items():
        if match.target in matches:
            other = matches[match.target].source
            raise ValueError(f"{name} and {other} both become {match.target}.")
        matches[match.target] = match
        try:
            translated[match.target] = table.rows[match.row].transform.forward(arrays[name])
        except ValueError as error:
            problems["of the wrong shape"].append(f"{name}: {error}")
    return Translation(translated, matches, problems)


def wrong_shapes(
    table: Table, translation: Translation, expected: Mapping[str, Any]
) -> list[str]:  # fmt: skip
    """Arrays of another shape than `expected` (by our name), in the foreign names and layout."""
    lines = []
    for target, array in translation.arrays.items():
        if target in expected and array.shape != tuple(expected[target].shape):
            match = translation.matches[target]
            inverse = table.rows[match.row].transform.inverse
            wanted = inverse(np.broadcast_to(np.float32(0), expected[target].shape))
            lines.append(f"{match.source}: {inverse(array).shape}, expected {wanted.shape}")
    return lines


def to_foreign(table: Table, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`: views in the foreign layout, in the table's order.

    Raises `ValueError` that lists every array for which the table has no name.
    """
    found = {name: match for name in arrays if (match := table.find_target(name))}
    unknown = [name for name in arrays if name not in found]
    if unknown:
        raise ValueError("The format has no place for\n" + describe({"arrays": unknown}))
    return {
        match.source: table.rows[match.row].transform.inverse(arrays[match.target])
        for match in sorted(found.values(), key=table.order)
    }


def _pattern(template: str, words: Mapping[str, str]) -> re.Pattern:
    literals = _PLACEHOLDER.split(template)[::3]
    names = [placeholder[1] for placeholder in _PLACEHOLDER.finditer(template)]
    groups = [f"(?P<{name}>{words[name] or r'0|[1-9][0-9]*'})" for name in names]
    parts = [re.escape(literals[0])]
    for group, literal in zip(groups, literals[1:], strict=True):
        parts += [group, re.escape(literal)]
    return re.compile("".join(parts))


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Puts in the values that are given, and leaves other placeholders as they are."""
    return _PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), template)
