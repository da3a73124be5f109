"""PreferenceData from parquet, jsonl and csv files, by pyarrow. No pickle, no network."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.data._arrays import Int, as_features, factorize
from maxmin_rlhf.data.preferences import PreferenceData

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_ONE_HOT = 10_000
_MOST_FLOAT64 = 1_024
# What pandas calls a row index without a name, in its csv files and when it reads them back.
_ROW_INDEX = re.compile(r"|Unnamed: \d+")
_PARQUET_INDEX = re.compile(r"__index_level_\d+__")


def read_preferences(
    path: str | os.PathLike[str],
    annotator: str,
    features: Any,
    chosen: Any,
    rejected: Any,
    items: Any,
    comparison: str | None,
    weight: str | None,
) -> PreferenceData:
    """What `PreferenceData.read` does."""
    if (features is None) == (chosen is None) or (chosen is None) != (rejected is None):
        raise ValueError("expected the columns of either features, or both chosen and rejected")
    if features is not None and items is not None:
        raise ValueError("items: expected ids in chosen and rejected beside it, got features")
    sides = [_names(names) for names in (features, chosen, rejected)]
    roles: dict[str, Any] = {
        "annotator": annotator,
        "comparison": comparison,
        "weight": weight,
    }
    roles |= dict(zip(("features", "chosen", "rejected"), sides, strict=True))
    table = Table(path, roles)
    who = table.ids(annotator)
    sets = None if comparison is None else table.ids(comparison)
    v = None if weight is None else table.numbers([weight])[:, 0]
    if features is not None:
        return PreferenceData.from_arrays(table.numbers(sides[0]), who, comparison=sets, weight=v)
    if not (table.holds_ids(chosen) and table.holds_ids(rejected)):
        if items is not None:
            raise ValueError("items: expected chosen and rejected to name columns of item ids")
        won, lost = table.numbers(sides[1]), table.numbers(sides[2])
        return PreferenceData._from_pairs(won, lost, who, sets, v)
    won, lost = table.ids(chosen), table.ids(rejected)
    item_features, item_ids, first, second = _index(won, lost, items)
    return PreferenceData.from_items(
        item_features, first, second, who, comparison=sets, weight=v, item_ids=item_ids
    )


def _names(columns: Any) -> list[str]:
    if columns is None:
        return []
    return [columns] if isinstance(columns, str) else list(columns)


def _index(
    chosen: NDArray[Any], rejected: NDArray[Any], items: Any
) -> tuple[Any, NDArray[Any] | None, Int, Int]:
    """Features and ids of the items, and the rows of the chosen and rejected ones among them."""
    n_rows = chosen.size
    codes, judged = factorize("chosen, rejected", [*chosen.tolist(), *rejected.tolist()])
    features, ids = _item_table(items)
    if ids is None and features is not None:  # row numbers are ids
        if judged.dtype.kind not in "iu":
            raise ValueError(
                "items: row numbers are its ids, expected integers in chosen, rejected"
            )
        position = judged.astype(np.int64)
        return features, None, position[codes[:n_rows]], position[codes[n_rows:]]
    if ids is None:  # one-hot
        if judged.size > _MOST_ONE_HOT:
            raise ValueError(
                f"items: {judged.size:,} different ids are too many for one-hot features (at most "
                f"{_MOST_ONE_HOT:,}); give a table of items with their features"
            )
        try:
            ids = np.sort(judged)
        except TypeError:  # ids of several types
            ids = judged
        features = np.eye(ids.size, dtype=np.float64 if ids.size <= _MOST_FLOAT64 else np.float32)
    row_of = {key: row for row, key in enumerate(ids.tolist())}
    position = np.array([row_of.get(key, -1) for key in judged.tolist()], dtype=np.int64)
    rows = position[codes]
    unknown = np.flatnonzero(rows < 0)
    if unknown.size:
        side, row = divmod(int(unknown[0]), n_rows)
        raise ValueError(
            f"{('chosen', 'rejected')[side]}: {judged.tolist()[codes[unknown[0]]]!r} in row {row} is not among the "
            f"{ids.size} ids of items"
        )
    return features, ids, rows[:n_rows], rows[n_rows:]


def _item_table(items: Any) -> tuple[Any, NDArray[Any] | None]:
    """Features, None without any, and ids, None where they are the row numbers."""
    if items is None:
        return None, None
    if isinstance(items, str | os.PathLike):
        if os.fspath(items).endswith(".npy"):
            return load_array(items), None
        table = Table(items, {})
        names = table.columns
        return table.numbers(names[1:]), _distinct(table.ids(names[0]))
    if isinstance(items, tuple) and len(items) == 3 and isinstance(items[0], str | os.PathLike):
        path, id_column, columns = items
        table = Table(path, {"items": [id_column, *_names(columns)]})
        return table.numbers(_names(columns)), _distinct(table.ids(id_column))
    return as_features("items", items), None


def load_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array in a ``.npy`` file. No pickle."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{os.fspath(path)}: expected an array of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{os.fspath(path)}: expected one array, got an archive of several")
    return array


def _distinct(ids: NDArray[Any]) -> NDArray[Any]:
    """The ids of a table of items, each of which has one row."""
    first: dict[Any, int] = {}
    for row, key in enumerate(ids.tolist()):
        if first.setdefault(key, row) != row:
            raise ValueError(
                f"items: expected every id once, got {key!r} in rows {first[key]} and {row}"
            )
    return ids


class Table:
    """Columns of a file, checked: there, and without missing values."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        roles: dict[str, Any],
        optional: Sequence[str] = (),
    ) -> None:
        """``roles``: the columns wanted of each argument; none at all: every column is read. ``optional``: if there.

        Where every column is read, ``row_index`` names those that pandas wrote as its index, which come first.
        """
        self.path = os.fspath(path)
        wanted = [(role, name) for role, names in roles.items() for name in _names(names)]
        if os.path.getsize(self.path) == 0:
            raise ValueError(f"{self.path}: empty file")
        self._table = _load(self.path, list(dict.fromkeys(name for _, name in wanted)), optional)
        if not self.columns:
            raise ValueError(f"{self.path}: empty file: no columns")
        for role, name in wanted:
            if name not in self.columns:
                raise ValueError(
                    f"{role}: no column {name!r} in {self.path}; it has {', '.join(self.columns)}"
                )
        self._check_names({*optional, *(name for _, name in wanted)} or None)
        self.row_index: list[str] = []
        if not wanted:
            self._sort_out_index()
        if self._table.num_rows == 0:
            raise ValueError(f"{self.path}: empty file: no rows")

    def _check_names(self, read: set[str] | None) -> None:
        """The columns that are read, None for all, are there once, and are not bytes that a csv was found to have."""
        import pyarrow as pa

        for field in self._table.schema:
            if read is not None and field.name not in read:
                continue
            times = self.columns.count(field.name)
            if times > 1 and not _ROW_INDEX.fullmatch(field.name):
                raise ValueError(
                    f"{self.path}: expected every column once, got {times} named {field.name!r}"
                )
            if pa.types.is_binary(field.type) and _is_csv(self.path):
                raise ValueError(
                    f"{self.path}: expected text in UTF-8, got other bytes in column {field.name!r}"
                )

    def _sort_out_index(self) -> None:
        """Numbers of rows are nobody's features."""
        for at, name in enumerate(self.columns):
            if _ROW_INDEX.fullmatch(name):
                raise ValueError(
                    f"{self.path}: expected names of columns, got {name!r} of column {at}, which looks like a saved row "
                    "index: write the file with index=False, or name the columns"
                )
        said = (self._table.schema.pandas_metadata or {}).get("index_columns", [])
        index = [n for n in said if isinstance(n, str) and n in self.columns]
        self.row_index = [name for name in index if not _PARQUET_INDEX.fullmatch(name)]
        others = [name for name in self.columns if name not in index]
        self._table = self._table.select([*self.row_index, *others])

    @property
    def columns(self) -> list[str]:
        try:
            return list(self._table.column_names)
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: expected names of columns in UTF-8") from None

    def holds_ids(self, columns: str | Sequence[str]) -> bool:
        """Whether this is the name of one column of strings or integers."""
        import pyarrow as pa

        if not isinstance(columns, str):
            return False
        kind = self._table.schema.field(columns).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_integer(kind) or _is_string(kind))

    def ids(self, column: str) -> NDArray[Any]:
        """(N,) ids; strings as shared Python objects."""
        import pyarrow as pa

        values = self._column(column)
        if pa.types.is_dictionary(values.type) or _is_string(values.type):
            encoded = values.dictionary_encode()
            distinct = np.array(encoded.dictionary.to_pylist(), dtype=object)
            return np.asarray(distinct[encoded.indices.to_numpy(zero_copy_only=False)])
        return np.asarray(values.to_numpy(zero_copy_only=False))

    def texts(self, column: str) -> list[Any]:
        """N strings, or whatever else there is. Messages lose fields without a value: a table gives each the same fields."""
        return [
            [
                {k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m
                for m in value
            ]
            if isinstance(value, list)
            else value
            for value in self._column(column).to_pylist()
        ]

    def numbers(self, columns: Sequence[str]) -> NDArray[Any]:
        """(N, D) of several numeric columns or of one column of lists."""
        import pyarrow as pa

        if not columns:
            raise ValueError(f"{self.path}: expected at least one column of features")
        kind = self._table.schema.field(columns[0]).type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if len(columns) == 1 and (is_list or pa.types.is_fixed_size_list(kind)):
            return self._lists(columns[0])
        parts = [self._as_numbers(name, self._column(name)) for name in columns]
        return np.stack(parts, axis=1)

    def _lists(self, column: str) -> NDArray[Any]:
        import pyarrow.compute as pc

        values = self._column(column)
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != lengths[0])
        if odd.size:
            raise ValueError(
                f"{self.path}: expected lists of equal length in column {column!r}, got {lengths[0]} in row 0 and "
                f"{lengths[odd[0]]} in row {odd[0]}"
            )
        flat = values.flatten()
        if flat.null_count:
            row = int(np.flatnonzero(flat.is_null())[0]) // int(lengths[0])
            raise ValueError(
                f"{self.path}: a missing value in a list of column {column!r}, in row {row}"
            )
        return self._as_numbers(column, flat).reshape(len(values), int(lengths[0]))

    def _as_numbers(self, column: str, values: pa.Array) -> NDArray[Any]:
        import pyarrow as pa

        kind = values.type
        if pa.types.is_decimal(kind):
            values = values.cast(pa.float64())
        elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise TypeError(f"{self.path}: expected numbers in column {column!r}, got {kind}")
        return np.asarray(values.to_numpy(zero_copy_only=False))

    def _column(self, name: str) -> pa.Array:
        import pyarrow as pa

        column = self._table.column(name)
        if column.null_count:
            first = int(np.flatnonzero(column.is_null())[0])
            raise ValueError(
                f"{self.path}: column {name!r} has {column.null_count} missing values, the first in row {first}"
            )
        joined = column.combine_chunks()
        return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def _is_csv(path: str) -> bool:
    return path.lower().removesuffix(".gz").endswith(".csv")


def _is_string(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _load(path: str, columns: list[str], optional: Sequence[str] = ()) -> pa.Table:
    try:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.json
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "reading files needs pyarrow: pip install 'maxmin-kernels[data]'"
        ) from error
    try:
        if path.lower().endswith((".parquet", ".pq")):
            with pa.parquet.ParquetFile(path) as file:
                schema = file.schema_arrow
                if set(columns) <= set(schema.names):
                    there = [name for name in optional if name in schema.names]
                    return file.read(columns=[*columns, *there] or None)
                return schema.empty_table()  # enough to say what is missing
        if path.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
            # A row may hold a long text or many numbers: it must fit a block.
            options = pa.json.ReadOptions(block_size=1 << 24)
            return pa.json.read_json(path, read_options=options)
        if _is_csv(path):
            # An empty cell is a missing value, of strings too. "NA" may be somebody's name.
            convert = pa.csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
            return pa.csv.read_csv(path, convert_options=convert)
    except (pa.ArrowInvalid, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # the system's, not a damaged archive
            raise
        raise ValueError(f"{path}: {error}") from None
    raise ValueError(
        f"{path}: unsupported file type, expected .parquet, .jsonl or .csv (the last two also with .gz)"
    )
