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
from collections.abc import Callable, Iterable, Mapping
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


def _transpose(axes: tuple[int, ...], x: np.ndarray) -> np.ndarray:
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
    """A name that a row knows: what it is on the other side."""

    name: str
    row: int
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

    def find_source(self, name: str) -> Match | None:
        """The target of a foreign name."""
        return self._find(name, self._sources, [row.target for row in self.rows])

    def find_target(self, name: str) -> Match | None:
        """The foreign name of a target."""
        return self._find(name, self._targets, [row.source for row in self.rows])

    def _find(self, name: str, patterns: list[re.Pattern], templates: list[str]) -> Match | None:
        found = [(i, m) for i, p in enumerate(patterns) if (m := p.fullmatch(name))]
        if len(found) > 1:
            rows = ", ".join(self.rows[i].source for i, _ in found)
            raise ValueError(f"{name} matches {len(found)} rows of the table: {rows}.")
        for i, match in found:
            return Match(_fill(templates[i], match.groupdict()), i, match.groupdict())
        return None

    def missing(self, matches: Mapping[str, Match]) -> list[str]:
        """Foreign names that `matches` (by foreign name) lacks, judged by the names alone.

        Every row has to be filled, for each word and for every number up to the highest that
        occurs at that place of any name (or as many as there are names, if that is less).
        """
        counts: dict[str, int] = {}
        for match in matches.values():
            for place, number in self._numbers(match):
                counts[place] = max(counts.get(place, 0), min(number + 1, len(matches)))
        due = [name for i in range(len(self.rows)) for name in self._expand(i, counts)]
        return [name for name in due if name not in matches]

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
    """Arrays by target, the foreign name of each, and what did not fit, for `describe`."""

    arrays: dict[str, np.ndarray]
    sources: dict[str, str]
    problems: dict[str, list[str]]


def to_ours(table: Table, arrays: Mapping[str, np.ndarray]) -> Translation:
    """Every foreign array that the table knows, as a view in our layout."""
    found = {name: table.find_source(name) for name in arrays}
    matches = {name: match for name, match in found.items() if match}
    problems: dict[str, list[str]] = {
        "unexpected": [name for name in arrays if name not in matches],
        "missing": table.missing(matches),
        "of the wrong shape": [],
    }
    translated, sources = {}, {}
    for name, match in matches.items():
        if match.name in sources:
            raise ValueError(f"{name} and {sources[match.name]} both become {match.name}.")
        sources[match.name] = name
        try:
            translated[match.name] = table.rows[match.row].transform.forward(arrays[name])
        except ValueError as error:
            problems["of the wrong shape"].append(f"{name}: {error}")
    return Translation(translated, sources, problems)


def wrong_shapes(
    table: Table, translation: Translation, expected: Mapping[str, Any]
) -> list[str]:  # fmt: skip
    """Arrays of another shape than `expected` (by target), in the foreign names and layout."""
    lines = []
    for target, array in translation.arrays.items():
        if target not in expected or array.shape == tuple(expected[target].shape):
            continue
        name = translation.sources[target]
        inverse = table.rows[table.find_source(name).row].transform.inverse
        wanted = inverse(np.broadcast_to(np.float32(0), expected[target].shape))
        lines.append(f"{name}: {inverse(array).shape}, expected {wanted.shape}")
    return lines


def to_foreign(table: Table, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`: views in the foreign layout, in the table's order.

    Raises `ValueError` that lists every array for which the table has no name.
    """
    found = {name: table.find_target(name) for name in arrays}
    unknown = [name for name, match in found.items() if match is None]
    if unknown:
        raise ValueError("The format has no place for\n" + describe({"arrays": unknown}))
    return {
        match.name: table.rows[match.row].transform.inverse(arrays[name])
        for name, match in sorted(found.items(), key=lambda item: _order(table, item[1].name))
    }


def _order(table: Table, source: str) -> tuple[int, ...]:
    match = table.find_source(source)
    assert match is not None, f"{source} does not match the row that made it"
    return table.order(match)


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
