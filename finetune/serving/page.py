"""``GET /`` is the page, ``/about`` what it asks of the model, ``/report`` the run's report."""

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from finetune import run_directory
from finetune.data import corrections

if TYPE_CHECKING:
    from finetune.serving.service import Service

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
# No other site may show a page in a frame, or see where its links lead from.
CLOSED = "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
COMMON = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# The report has no scripts, and its images inside.
REPORT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def policy(html: str) -> str:
    """Returns the Content-Security-Policy under which a page runs its own script and no other."""
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    return (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        "connect-src 'self'; img-src blob: data:"
    )


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def router(service: "Service") -> APIRouter:
    """Returns the routes."""
    routes = APIRouter()
    policies = {"page": policy(PAGE) + CLOSED, "report": REPORT + CLOSED}

    def answer(html: str, kind: str) -> HTMLResponse:
        return HTMLResponse(html, headers=COMMON | {"Content-Security-Policy": policies[kind]})

    @routes.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return answer(PAGE, "page")

    @routes.get("/report", response_class=HTMLResponse)
    def report() -> HTMLResponse:
        """The run's report: how good the model is."""
        file = service.run.folder / run_directory.REPORT
        if not file.is_file():
            raise HTTPException(404, f"no report; `finetune report {service.run}` writes it")
        return answer(file.read_text(encoding="utf-8"), "report")

    @routes.get("/about")
    async def about() -> dict[str, Any]:
        """What the model takes and gives; ``feedback`` is the file of its corrections, if any."""
        kept = str(service.run.folder / corrections.FILE)
        return {
            "model": service.name,
            "task": service.task.name,
            "fields": {name: kind.__name__ for name, kind in service.fields.items()},
            "labels": service.data["label_names"],
            "problem_type": service.data["problem_type"],
            "generates": service.generates,
            "chats": service.chats,
            "feedback": kept if service.fields and service.task.is_labelled else None,
        }

    return routes
