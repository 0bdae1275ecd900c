"""Tables of rows written to JSONL, CSV, TSV or Parquet: whole, or not at all."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rankwright.atomic import atomic_file
from rankwright.compressed import plain_name
from rankwright.errors import UserError

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
BATCH_ROWS = 1024
_TYPES: Mapping[str, str] = {
    "weight": "number",
    "label": "number",
    "labels": "numbers",
    "pos_scores": "numbers",
    "neg_scores": "numbers",
    "pos": "texts",
    "neg": "texts",
    "pos_id": "texts",
    "neg_id": "texts",
    "documents": "texts",
    "positives": "documents",
    "negatives": "documents",
    "positive_passages": "passages",
    "negative_passages": "passages",
    "messages": "turns",
    "positive_messages": "conversations",
    "negative_messages": "conversations",
}


def check_suffix(path: Path) -> str:
    """The suffix that says how a file is written. Raises UserError for one that cannot be."""
    suffix = next((end for end in SUFFIXES if plain_name(path).endswith(end)), None)
    if suffix is None:
        raise UserError(f"{path}: its name must end in {', '.join(SUFFIXES)}, or in those with .gz or .zst")
    if suffix == ".parquet" and path.suffix != ".parquet":
        raise UserError(f"{path}: a Parquet file is packed inside: leave {path.suffix} out")
    return suffix


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write the rows (at least one, all with the same keys) and return how many; lists stand in CSV as JSON."""
    suffix = check_suffix(path)
    counted = _Counted(rows)
    with atomic_file(path) as draft:
        if suffix == ".parquet":
            _write_parquet(draft, counted)
        else:
            with _text_file(draft, path.suffix) as file:
                (_write_jsonl if suffix == ".jsonl" else _write_csv)(file, counted, suffix)
    return counted.count


class _Counted:
    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in self.rows:
            self.count += 1
            yield row


@contextlib.contextmanager
def _text_file(path: Path, packed: str) -> Iterator[IO[str]]:
    with contextlib.ExitStack() as stack:
        if packed == ".gz":
            # No time and no name inside: the same rows give the same bytes.
            plain = stack.enter_context(path.open("wb"))
            raw = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=plain, mtime=0))
        elif packed == ".zst":
            import pyarrow

            sink = stack.enter_context(pyarrow.OSFile(str(path), "wb"))
            raw = stack.enter_context(pyarrow.CompressedOutputStream(sink, "zstd"))
        else:
            raw = cast("gzip.GzipFile", stack.enter_context(path.open("wb")))
        file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        yield file
        file.flush()
        file.detach()


def _write_jsonl(file: IO[str], rows: Iterable[Mapping[str, Any]], suffix: str) -> None:
    for row in rows:
        file.write(json.dumps(_slim(row), ensure_ascii=False) + "\n")


def _slim(value: Any) -> Any:
    """Without keys that say nothing; Nones inside a list stay, since they hold a place."""
    if isinstance(value, Mapping):
        return {key: _slim(part) for key, part in value.items() if part is not None}
    return [_slim(part) for part in value] if isinstance(value, list) else value


def _write_csv(file: IO[str], rows: Iterable[Mapping[str, Any]], suffix: str) -> None:
    # CRLF makes the writer quote a lone carriage return too.
    writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\r\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow(
            json.dumps(_slim(cell), ensure_ascii=False) if isinstance(cell, list) else cell for cell in row.values()
        )


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    found = iter(rows)
    first = next(found)
    types = _arrow_types()
    schema = pyarrow.schema([(name, types[_TYPES.get(name, "text")]) for name in first])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        every = itertools.chain([first], found)
        while batch := list(itertools.islice(every, BATCH_ROWS)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))


def _arrow_types() -> dict[str, pyarrow.DataType]:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    struct: Callable[..., pyarrow.DataType] = pyarrow.struct
    document = struct([("id", text), ("text", text), ("label", number), ("score", number), ("group", text)])
    turn = struct([("role", text), ("content", text)])
    many = pyarrow.list_
    return {
        "text": text,
        "number": number,
        "texts": many(text),
        "numbers": many(number),
        "documents": many(document),
        "passages": many(struct([("docid", text), ("title", text), ("text", text)])),
        "turns": many(turn),
        "conversations": many(many(turn)),
    }
