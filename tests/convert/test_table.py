"""The engine that reads a table of names in both directions."""

import numpy as np
import pytest

from samjax.convert.table import Row, Table, permute, to_foreign, to_ours, wrong_shapes

TABLE = Table(
    [
        Row("stem.weight", "stem.kernel", permute(2, 3, 1, 0)),
        Row("blocks.{i}.{name:q|kv}.weight", "layers.{i}.{name}.kernel", permute(1, 0)),
        Row("blocks.{i}.{name:q|kv}.bias", "layers.{i}.{name}.bias"),
        Row("blocks.{i}.scale", "layers.{i}.scale"),
        Row("heads.{i}.{j}.b", "heads.{i}.parts.{j}"),
    ]
)


def foreign(blocks: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {"stem.weight": rng.random((2, 3, 4, 5))}
    for i in range(blocks):
        arrays |= {
            f"blocks.{i}.q.weight": rng.random((2, 3)),
            f"blocks.{i}.q.bias": rng.random(2),
            f"blocks.{i}.kv.weight": rng.random((4, 3)),
            f"blocks.{i}.kv.bias": rng.random(4),
            f"blocks.{i}.scale": rng.random(3),
        }
    return arrays | {"heads.0.0.b": rng.random(1), "heads.0.1.b": rng.random(1)}


def test_both_directions_are_exact_and_ordered():
    arrays = foreign(blocks=11)
    translation = to_ours(TABLE, arrays)
    assert not any(translation.problems.values())
    assert translation.arrays["stem.kernel"].shape == (4, 5, 3, 2)
    np.testing.assert_array_equal(
        translation.arrays["layers.10.kv.kernel"], arrays["blocks.10.kv.weight"].T
    )
    back = to_foreign(TABLE, dict(reversed(translation.arrays.items())))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.k.weight",
        "blocks.x.q.weight",
        "blocks.00.q.weight",
        "blocks.-1.q.weight",
        "xblocks.0.q.weight",
        "blocks.0.q.weight.",
        "blocks.0.q.weight\n",
        "blocks_0.q.weight",
        "blocks.0.scale.weight",
    ],
)
def test_patterns_are_anchored_and_literal(name):
    assert TABLE.find_source(name) is None
    assert to_ours(TABLE, foreign() | {name: np.zeros(1)}).problems["unexpected"] == [name]


def test_every_missing_name_is_listed():
    arrays = foreign()
    gone = ["stem.weight", "blocks.0.q.bias", "blocks.1.scale", "heads.0.0.b"]
    for name in gone:
        del arrays[name]
    assert to_ours(TABLE, arrays).problems["missing"] == gone


def test_a_whole_list_that_is_missing_is_listed_once():
    arrays = {name: array for name, array in foreign().items() if "blocks" not in name}
    missing = to_ours(TABLE, arrays).problems["missing"]
    assert missing == [name for name in foreign(blocks=1) if "blocks" in name]


def test_a_gap_between_numbers_is_missing():
    arrays = foreign(blocks=3)
    for name in list(arrays):
        if name.startswith("blocks.1."):
            del arrays[name]
    missing = to_ours(TABLE, arrays).problems["missing"]
    assert sorted(missing) == sorted(n for n in foreign(3) if n.startswith("blocks.1."))


def test_an_absurd_number_does_not_exhaust_the_memory():
    translation = to_ours(TABLE, foreign() | {"blocks.99999999999.scale": np.zeros(3)})
    assert 0 < len(translation.problems["missing"]) < 1000


def test_a_name_that_two_rows_know_raises():
    table = Table([Row("a.{name:x|y}", "b.{name}"), Row("a.x", "c")])
    with pytest.raises(ValueError, match=r"a\.x matches 2 rows"):
        to_ours(table, {"a.x": np.zeros(1)})


def test_two_names_for_one_target_raise():
    table = Table([Row("a", "c"), Row("b", "c")])
    with pytest.raises(ValueError, match="b and a both become c"):
        to_ours(table, {"a": np.zeros(1), "b": np.zeros(1)})


def test_rows_that_cannot_be_reversed_are_refused():
    with pytest.raises(ValueError, match="different placeholders"):
        Table([Row("a.{i}", "b")])


def test_arrays_without_a_foreign_name_are_all_listed():
    with pytest.raises(ValueError, match=r"2 arrays:\n  first\n  second"):
        to_foreign(TABLE, {"stem.kernel": np.zeros((1, 1, 1, 1)), "first": 0, "second": 0})


def test_wrong_shapes_are_told_in_the_foreign_layout():
    arrays = foreign() | {"blocks.0.q.weight": np.zeros((7, 3)), "stem.weight": np.zeros(4)}
    expected = to_ours(TABLE, foreign()).arrays
    translation = to_ours(TABLE, arrays)
    assert translation.problems["of the wrong shape"] == ["stem.weight: (4,), expected 4 axes"]
    assert wrong_shapes(TABLE, translation, expected) == [
        "blocks.0.q.weight: (7, 3), expected (2, 3)"
    ]
