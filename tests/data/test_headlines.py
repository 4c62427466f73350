"""Articles with headlines, a file each."""

from pathlib import Path

from finetune.data import headlines


def test_the_first_line_is_the_headline(tmp_path: Path) -> None:
    for name, content in (("a/2.txt", b"Two\n\nA text.\n\nMore."), ("b/1.txt", b"One \xa3\n\nB")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    table = headlines.read_articles(tmp_path, "embedded:bbc")
    assert table.rows.values.tolist() == [
        ["Two", "A text.\n\nMore.", "a"],
        ["One £", "B", "b"],
    ]
    assert table.place(table.rows.index[1]) == (str(tmp_path / "b" / "1.txt"), None)
