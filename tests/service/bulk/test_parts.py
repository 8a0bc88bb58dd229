from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.parts import plan


def test_parts_keep_the_order_and_end_at_shards_and_parquet_files(tmp_path: Path) -> None:
    rows = str(tmp_path / "r.parquet")
    pq.write_table(pa.table({"image": [b""] * 7}), rows, row_group_size=2)
    files = ["a.png", "b.png", "c.png", "s.TAR", "d.png", rows, "e.png", "t.tar.gz", "u.tgz"]
    parts = plan(files, part_images=2, column=None)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [part.images for part in parts] == [2, 1, None, 1, 2, 2, 2, 1, 1, None, None]
    assert [part.content for part in parts[:4]] == [("a.png", "b.png"), ("c.png",), "s.TAR", ("d.png",)]
    assert plan(files, part_images=2, column=None) == parts
