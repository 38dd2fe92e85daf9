"""results.csv: rows survive the way to disk and back, files of before are read, and foreign ones left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cce_core.tuning import rows


def good_text(**changes):
    row = dict.fromkeys(rows.COLUMNS) | {
        "run": "0123456789ab", "label": "a, \"b\"", "status": "ok", "auc": 0.5, "logloss": 0.7, "bytes": 8, "num_params": 2,
        "seed": 1,
    } | changes  # fmt: skip
    return rows.line(rows.COLUMNS) + rows.line(row[name] for name in rows.COLUMNS)


def test_rows_survive_the_way_to_disk_and_back():
    text = good_text(error='two\nlines, and a "quote"', auc=0.1 + 0.2)
    (row,) = rows.parsed(text, Path("x"))
    assert (row["label"], row["error"], row["auc"]) == ('a, "b"', 'two lines, and a "quote"', 0.1 + 0.2)
    assert row["cpu_seconds"] is None
    assert rows.parsed(text + text.splitlines()[1][:40], Path("x")) == [row]  # torn
    later = rows.parsed(text + good_text(auc=0.9).splitlines()[1] + "\n", Path("x"))
    assert [row["auc"] for row in later] == [0.9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is not a sweep's"),
        (good_text().replace("auc,logloss", "logloss,auc"), "order of its columns"),
        (good_text() + "1,2,3\n", "line 3: expected"),
        (good_text(auc="high"), "line 2: auc must be a float, got 'high'"),
        (good_text(auc=float("nan")), "line 2: auc and logloss"),
        (good_text(status="fine"), "status among ok"),
        (good_text(bytes=0), "above 0"),
        (good_text(run=""), "needs a run"),
    ],
)
def test_foreign_rows_are_refused_and_the_file_is_left_alone(text, message, tmp_path):
    path = tmp_path / rows.NAME
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        rows.read(tmp_path)
    with pytest.raises(ValueError, match=message):
        rows.Writer(tmp_path)
    assert path.read_text() == text


def test_a_file_of_before_is_read_and_goes_on_with_todays_columns(tmp_path):
    header, row = good_text().splitlines()
    at = header.split(",").index("score")
    assert "score" in rows.LATER
    fields = [
        ",".join(text.split(",")[:at] + text.split(",")[at + 1 :]) for text in (header, row.replace('"a, ""b"""', "a"))
    ]
    path = tmp_path / rows.NAME
    path.write_text("\n".join(fields) + "\n0123")
    (old,) = rows.read(tmp_path)
    assert (old["label"], old["auc"], old["score"]) == ("a", 0.5, None)
    with rows.Writer(tmp_path) as out:
        out.add({**old, "run": "another", "score": -2.5})
        with pytest.raises(BlockingIOError, match="another sweep is writing"):
            rows.Writer(tmp_path)  # the lock moved along to the new file
    assert path.read_text().splitlines()[0] == ",".join(rows.COLUMNS)
    assert [row["score"] for row in rows.read(tmp_path)] == [None, -2.5]
    assert list(tmp_path.iterdir()) == [path]
