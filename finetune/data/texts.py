"""Texts, or pairs of texts, with labels."""

import pandas

from finetune.data import plain_rows, readers
from finetune.data.document_columns import Layout
from finetune.recipe import Data


class Texts(plain_rows.NamedRows):
    """A text, and maybe a second one."""

    name = "texts"

    def columns(self, data: Data) -> dict[str, str]:
        return {"text": data.text} | ({"text_pair": data.text_pair} if data.text_pair else {})

    def finished(
        self, frame: pandas.DataFrame, table: readers.Table, parts: Layout, data: Data
    ) -> pandas.DataFrame:
        plain_rows.as_texts(frame, table, parts)
        return super().finished(frame, table, parts, data)


TEXTS = Texts()
