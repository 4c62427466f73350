"""``POST /predict``: JSON for texts, files for images."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, File, UploadFile
from pydantic import BaseModel, ConfigDict, Field, create_model

from finetune.data import image_decoding
from finetune.errors import UserError
from finetune.serving.batching import Batcher
from finetune.serving.guards import Text
from finetune.serving.limits import Limits

if TYPE_CHECKING:
    from finetune.serving.service import Service


class Predictions(BaseModel):
    """One answer a row, in their order: ``prediction``, and ``probabilities`` where there are some.

    The prediction of an empty row is null.
    """

    predictions: list[dict[str, Any]]


def router(service: "Service", batcher: Batcher, limits: Limits) -> APIRouter:
    """Returns the route, which asks for what the model's task needs."""
    routes = APIRouter()
    if bytes in service.fields.values():
        (name,) = service.fields

        @routes.post("/predict")
        async def of_files(
            files: Annotated[list[UploadFile], File(min_length=1, max_length=limits.rows)],
        ) -> Predictions:
            """Labels image files."""
            rows = [{name: await file.read()} for file in files]
            size = await asyncio.to_thread(decoded, [row[name] for row in rows], limits.decoded)
            return Predictions(predictions=await batcher.submit(rows, size))

        return routes

    strict = ConfigDict(extra="forbid")
    texts: Any = dict.fromkeys(service.fields, (Text, ...))
    row: Any = create_model("Row", __config__=strict, **texts)
    # A row of one text can be given as that text.
    single = next(iter(service.fields)) if len(service.fields) == 1 else None
    item: Any = row | Text if single else row
    rows_of: Any = Annotated[list[item], Field(min_length=1, max_length=limits.rows)]
    body: Any = create_model("Inputs", __config__=strict, inputs=(rows_of, ...))

    @routes.post("/predict")
    async def of_texts(given: body) -> Predictions:  # pyright: ignore[reportInvalidTypeForm]
        """Labels texts."""
        rows: list[Any] = [
            {single: i} if isinstance(i, str) else i.model_dump() for i in given.inputs
        ]
        return Predictions(predictions=await batcher.submit(rows))

    return routes


def decoded(files: list[bytes], most: int) -> int:
    """Returns how many bytes some image files become, by their headers: nothing is decoded.

    Raises:
        UserError: that is too much, or a file is no image.
    """
    total = 0
    for number, file in enumerate(files, 1):
        try:
            width, height = image_decoding.size(file)
        except image_decoding.Unusable as reason:
            raise UserError(f"file {number} {reason}") from None
        total += 3 * width * height
    if total > most:
        raise UserError(
            f"the images have {total // 3_000_000} megapixels, {most // 3_000_000} are the most"
        )
    return total
