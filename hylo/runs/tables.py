"""Tables of records, read from parquet files and sorted by their keys."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet

from hylo.core.errors import RecordError


def read_table(path: Path, columns: list[str], *, keys: int = 2, delete: Path | None = None) -> pd.DataFrame:
    """A table with these columns, sorted by the first `keys` of them; `delete` is what an error says to delete, by
    default the run's folder.

    Raises:
        RecordError: the file is missing or damaged, or lacks a column.
    """
    fix = f"delete {delete or path.parent} and run the cell again"
    try:
        # Without pandas' reader and pyarrow's threads, which cost more than the reading of so small a file.
        table = pyarrow.parquet.ParquetFile(path).read(use_threads=False).to_pandas(use_threads=False)
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; {fix}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged ({error}); {fix}") from error
    return sorted_table(table, path, columns, keys, fix)


def sorted_table(table: pd.DataFrame, path: Path, columns: list[str], keys: int, fix: str) -> pd.DataFrame:
    """The table of `path`, sorted by the first `keys` of the columns that it must have.

    Raises:
        RecordError: it lacks a column; the error ends in `fix`.
    """
    if missing := sorted(set(columns) - set(table.columns)):
        raise RecordError(f"{path} lacks the columns {', '.join(missing)}; {fix}")
    by = columns[:keys]
    if not by or _in_order(table, by):
        return table
    return table.sort_values(by).reset_index(drop=True)


def _in_order(table: pd.DataFrame, by: list[str]) -> bool:
    """Whether the rows are sorted by these columns, as they are written; False also if the columns are not numbers."""
    values = [table[name].to_numpy() for name in reversed(by)]
    numbers = all(np.issubdtype(each.dtype, np.number) for each in values)
    return numbers and bool((np.diff(np.lexsort(values)) == 1).all()) and isinstance(table.index, pd.RangeIndex)
