"""The ASGI application: routes, their documents, and errors in one form."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from ..data.requests import check_prompts
from ..utils.packages import package_version
from ..utils.text import printable
from .engine import Embedding
from .gate import HEALTH, Gate
from .inputs import naming_place
from .refusals import Refusal, as_json
from .schemas import (
    ClassifyRequest,
    DecisionAnswer,
    EmbeddingAnswer,
    EmbeddingRequest,
    ErrorAnswer,
    Health,
    LabelScore,
    ModelCard,
    ModelList,
    ScoreAnswer,
    ScoreRequest,
    SearchAnswer,
    SearchRequest,
    WhereAnswer,
    WhereRequest,
)
from .service import ClipService, ServerSettings

ABOUT = (
    "Embeddings of images and texts, zero-shot labels, similarities, search and maps, by one CLIP. Errors are one "
    "sentence in the form of OpenAI's. Embeddings have length 1 unless `normalize` is false."
)
REASONS = {
    400: "The body is not JSON",
    401: "The API key is missing or wrong",
    404: "There is no such model, or no index",
    408: "The body came too slowly",
    413: "The body is too large",
    422: "A part of the request is wrong; the sentence names it",
    429: "Too many items wait; Retry-After says when to try again",
    501: "This server's model lacks what is asked for",
    503: "The server is starting or stopping, or took too long",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": reason} for status, reason in REASONS.items()
}
# an answer of at most so many is written in less time than a thread takes to begin
FEW_NUMBERS = 4096
# fields of forms that hold lists, however often they occur
FORM_LISTS = ("labels", "templates", "texts", "images", "where")
# parts of pydantic's places that are names of types, not of the request
TYPE_NAME = re.compile(r"~|str$|list\[|constrained|function-|body$|lax-|nullable")
_Model = TypeVar("_Model", bound=BaseModel)

# routes that take JSON or a form
FORMS: dict[str, type[BaseModel]] = {
    "/classify": ClassifyRequest,
    "/score": ScoreRequest,
    "/search": SearchRequest,
    "/where": WhereRequest,
}

router = APIRouter(responses=ERRORS)


def create_app(load: Callable[[], tuple[Any, Any]], settings: ServerSettings, *, wait: bool = False) -> FastAPI:
    """Make the application; the model is loaded when a server starts it.

    Args:
        load: Loads the model and its processor.
        settings: The settings.
        wait: Let no request in before the model answers, instead of refusing requests with 503.

    Returns:
        The application; its `state.service` is the ClipService.
    """
    service = ClipService(load, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.ensure_future(service.start())
        if wait:
            await starting
            if service.failure is not None:
                raise service.failure
        yield
        starting.cancel()
        await service.stop()

    app = FastAPI(
        title="hf_clip", version=package_version(), description=ABOUT, lifespan=lifespan, redoc_url=None,
        servers=[{"url": "/"}],
    )  # fmt: skip
    app.state.service = service
    app.include_router(router)
    app.add_middleware(Gate, service=service)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_failure)
    app.openapi = lambda: _document(app, bool(settings.api_key))  # type: ignore[method-assign]
    return app


@router.post("/v1/embeddings", response_model=EmbeddingAnswer, tags=["OpenAI"])
async def create_embeddings(request: Request, body: EmbeddingRequest) -> Response:
    """Embed texts and images, in OpenAI's form."""
    service = _service(request)
    _check_model(service, body.model)
    if body.dimensions not in (None, service.dimensions):
        raise Refusal(
            422,
            f"dimensions is {body.dimensions}, this model's embeddings have {service.dimensions} and cannot be cut: "
            "leave it out",
            "dimensions",
        )
    items = await service.read(service.reader.read_embedding_request, body)
    rows = await service.embed(items)
    tokens = sum(len(item.value) for item in items if item.kind == "text")
    arguments = (rows, body.normalize, body.encoding_format, service.settings.name, tokens)
    if len(rows) * service.dimensions <= FEW_NUMBERS:
        return _json(_embedding_answer(*arguments))
    return _json(await service.read(_embedding_answer, *arguments))


@router.get("/v1/models", response_model=ModelList, tags=["OpenAI"])
async def list_models(request: Request) -> ModelList:
    """List the model that the server has."""
    return ModelList(data=[_card(_service(request))])


@router.get("/v1/models/{model:path}", response_model=ModelCard, tags=["OpenAI"])
async def show_model(request: Request, model: str) -> ModelCard:
    """Describe the model."""
    _check_model(_service(request), model)
    return _card(_service(request))


ClassifyAnswer = list[LabelScore] | list[list[LabelScore]] | DecisionAnswer | list[DecisionAnswer]


@router.post("/classify", response_model=ClassifyAnswer, tags=["CLIP"])
async def classify_images(request: Request) -> Response:
    """Rank labels for an image, best first; a list of images gives a list of such lists."""
    service, body = _service(request), await _read_body(request, ClassifyRequest)
    classes = _classes(service, body)
    items = await service.read(service.reader.read_images, body.image, "image")
    rows, head = await asyncio.gather(service.embed(items), service.make_head(*classes))
    decided = await service.read(service.served.decide, _units(rows), head, body.top_k)
    answers = decided if body.answer == "decision" else [each["labels"] for each in decided]
    return _json(as_json(answers[0] if isinstance(body.image, str) else answers))


@router.post("/score", response_model=ScoreAnswer, tags=["CLIP"])
async def score_pairs(request: Request) -> Response:
    """Compare images with texts, each with each."""
    service, body = _service(request), await _read_body(request, ScoreRequest)
    images = await service.read(service.reader.read_images, body.images, "images")
    texts = await service.read(service.reader.read_texts, body.texts, "texts", body.truncate)
    rows = _units(await service.embed([*images, *texts]))
    image_rows, text_rows = np.stack(rows[: len(images)]), np.stack(rows[len(images) :])
    logits = await service.read(service.served.compare, image_rows, text_rows)
    return _json(as_json({"cosines": (image_rows @ text_rows.T).tolist(), "logits": logits.tolist()}))


@router.post("/search", response_model=SearchAnswer, tags=["CLIP"])
async def search_index(request: Request) -> Response:
    """Find the images of the server's index that fit texts, images, or an embedding."""
    service, body = _service(request), await _read_body(request, SearchRequest)
    if service.index is None:
        raise Refusal(404, "this server has no index: start it with --index")
    if body.vector is not None:
        if body.text or body.image or body.minus:
            raise Refusal(422, "vector: send it without texts and images, or leave it out", "vector")
        query = np.array(body.vector)
    else:
        reader, texts = service.reader, [(name, value) for name in ("text", "minus") if (value := getattr(body, name))]
        items = [item for name, value in texts for item in await service.read(reader.read_texts, _listed(value), name)]
        items += await service.read(reader.read_images, _listed(body.image or []), "image")
        if not items:
            raise Refusal(422, "the query is empty: send a text, an image or a vector")
        signs = [-1.0 if item.param.startswith("minus") else 1.0 for item in items]
        query = np.array(signs, np.float32) @ np.stack(_units(await service.embed(items)))
    hits = await service.search(query, body.k, body.where, body.min_score)
    # columns of an index may hold dates
    return _json(json.dumps({"hits": hits}, default=str).encode())


@router.post(
    "/where",
    response_model=WhereAnswer,
    responses={200: {"content": {"image/png": {}}, "description": "Places and maps, or a picture of the maps."}},
    tags=["CLIP"],
)
async def find_texts(request: Request) -> Response:
    """Find where in an image each text is."""
    service, body = _service(request), await _read_body(request, WhereRequest)
    image = await service.read(service.reader.read_image, body.image, "image")
    await service.read(service.reader.read_texts, body.texts, "texts")
    picture, maps = await service.map_texts(image, tuple(body.texts), body.method, body.whole)
    if body.answer == "png":
        content = await service.read(_draw_maps, picture, body.texts, maps, body.method)
        return Response(content, media_type="image/png")
    return _json(await service.read(_where_answer, picture.size, body.texts, maps, body.answer == "maps"))


@router.get(HEALTH[0], response_model=Health, tags=["operation"])
async def report_health() -> Health:
    """Answer while the process lives."""
    return Health(status="alive")


@router.get(HEALTH[1], response_model=Health, tags=["operation"])
async def report_readiness(request: Request) -> Health:
    """Answer with 200 while the model answers, and with 503 before, after, and when it fails."""
    await _service(request).check_ready()
    return Health(status="ready")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Metrics in Prometheus' text format."}},
    tags=["operation"],
)
async def report_metrics(request: Request) -> Response:
    """Report requests, latencies, batches, queues and refusals."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _service(request: Request) -> ClipService:
    return request.app.state.service


def _check_model(service: ClipService, model: str | None) -> None:
    names = (service.settings.name, service.served.source)
    if model is not None and model not in names:
        raise Refusal(404, f"there is no model {printable(model[:80])!r}: this server has {names[0]!r}", "model")


def _card(service: ClipService) -> ModelCard:
    return ModelCard(
        id=service.settings.name, created=service.created, dimensions=service.dimensions,
        context_length=service.served.context_length,
    )  # fmt: skip


def _classes(
    service: ClipService, body: ClassifyRequest
) -> tuple[tuple[str, ...], tuple[str, ...], str, tuple[str, ...]]:
    """Return labels, templates, mode and background; no labels where the saved classifier is asked."""
    if service.saved_head is not None and body.labels is None:
        for name in ("templates", "mode"):
            if getattr(body, name) is not None:
                raise Refusal(
                    422, f"{name}: the server's classifier has its own: send labels too, or leave it out", name
                )
        return (), (), "", ()
    labels, mode = tuple(body.labels or service.settings.labels), body.mode or "one"
    if not labels:
        raise Refusal(422, "labels are missing, and the server has none of its own: send some", "labels")
    templates = tuple(body.templates or service.templates)
    if body.labels or body.templates:
        naming_place("labels", check_prompts, labels, templates)
        if not all(label.strip() for label in labels):
            raise Refusal(422, "labels: one of them is empty: write it, or leave it out", "labels")
    return labels, templates, mode, naming_place("labels", service.served.background, labels, mode)


def _units(rows: Sequence[Embedding]) -> list[np.ndarray]:
    return [row.unit for row in rows]


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def _json(content: bytes) -> Response:
    # validated answers of thousands of numbers would take longer than the model
    return Response(content, media_type="application/json")


def _embedding_answer(rows: Sequence[Embedding], normalize: bool, encoding: str, model: str, tokens: int) -> bytes:
    chosen = [row.unit if normalize else row.raw for row in rows]
    if encoding == "base64":
        values: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in chosen]
    else:
        values = [row.tolist() for row in chosen]
    data = [{"object": "embedding", "index": place, "embedding": value} for place, value in enumerate(values)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return as_json({"object": "list", "data": data, "model": model, "usage": usage})


def _where_answer(size: tuple[int, int], texts: Sequence[str], maps: np.ndarray, with_maps: bool) -> bytes:
    found = []
    for text, values in zip(texts, maps, strict=True):
        y, x = np.unravel_index(np.nanargmax(values), values.shape)
        encoded = base64.b64encode(values.astype("<f4").tobytes()).decode() if with_maps else None
        found.append({"text": text, "score": float(values[y, x]), "x": int(x), "y": int(y), "map": encoded})
    return as_json({"width": size[0], "height": size[1], "found": found})


def _draw_maps(picture: Any, texts: Sequence[str], maps: np.ndarray, method: str) -> bytes:
    from io import BytesIO

    from ..plots.maps import maps_figure
    from ..utils.packages import MissingPackageError, require

    try:
        require("matplotlib", "plot", "a picture of maps")
    except MissingPackageError as error:
        raise Refusal(501, str(error), "answer") from error
    file = BytesIO()
    maps_figure(picture, texts, maps, method).savefig(file, format="png")
    return file.getvalue()


# --- bodies and errors ------------------------------------------------------------------------------------------------


async def _read_body(request: Request, model: type[_Model]) -> _Model:
    """Read a JSON body or a form with uploads, and validate it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return model.model_validate(await _read_form(request))
    if kind != "application/json":
        raise Refusal(422, f"the body is {kind or 'of no type'}: send application/json or multipart/form-data")
    try:
        values = await request.json()
    except (ValueError, RecursionError):
        raise Refusal(422, "the body is not JSON: send an object") from None
    return model.model_validate(values)


async def _read_form(request: Request) -> dict[str, Any]:
    async with request.form(max_files=2048, max_fields=8192) as form:
        values: dict[str, Any] = {}
        for name in form:
            given = [
                base64.b64encode(await each.read()).decode() if hasattr(each, "read") else each
                for each in form.getlist(name)
            ]
            values[name] = given if name in FORM_LISTS or len(given) > 1 else given[0]
            if values[name] in ("true", "false"):
                values[name] = values[name] == "true"
    return values


async def _answer_refusal(_: Request, refusal: Any) -> Response:
    return JSONResponse(refusal.content, refusal.status, refusal.headers)


async def _answer_invalid(request: Request, error: Any) -> Response:
    # of a union each member has its errors: the member that went deepest is the one meant
    first = max(error.errors(), key=lambda each: len(each["loc"]))
    if first["type"] == "json_invalid":
        return await _answer_refusal(request, Refusal(422, "the body is not JSON: send an object"))
    places = [part for part in first["loc"] if isinstance(part, int) or not TYPE_NAME.match(part)]
    # the tag of a part of a message has the name of its field
    places = [part for place, part in enumerate(places) if places[place - 1 : place] != [part]]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in places).lstrip(".")
    reason = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"].rstrip(".")
    sentence = f"{printable(param[:80]) or 'the body'}: {reason[:1].lower()}{reason[1:]}"
    return await _answer_refusal(request, Refusal(422, sentence, param or None))


async def _answer_http(request: Request, error: Any) -> Response:
    detail = str(error.detail).rstrip(".")
    known = {
        404: "there is no such route: /docs lists all",
        405: f"the route takes no {request.method}: /docs lists all",
    }
    refusal = Refusal(error.status_code, known.get(error.status_code, f"{detail[:1].lower()}{detail[1:]}"))
    refusal.headers.update(error.headers or {})
    return await _answer_refusal(request, refusal)


async def _answer_failure(request: Request, _: Exception) -> Response:
    return await _answer_refusal(request, Refusal(500, "the server failed on this request: its log says why"))


def _document(app: FastAPI, has_key: bool) -> dict[str, Any]:
    """Return the OpenAPI document, with the bodies that routes read themselves."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = FastAPI.openapi(app)
    schemas = document["components"]["schemas"]
    reference = "#/components/schemas/{model}"
    for path, model in FORMS.items():
        schema = model.model_json_schema(ref_template=reference)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
        form = {**schema, "title": f"{model.__name__}Form", "properties": _form_properties(schema["properties"])}
        content = {
            "application/json": {"schema": {"$ref": reference.format(model=model.__name__)}},
            "multipart/form-data": {"schema": form},
        }
        document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if has_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _form_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties of a form: images are files."""
    file = {"type": "string", "format": "binary"}
    changed: dict[str, dict[str, Any]] = {"image": file, "images": {"type": "array", "items": file, "minItems": 1}}
    return {
        name: changed[name] | {"description": schema["description"]} if name in changed else schema
        for name, schema in properties.items()
        if name != "vector"
    }


__all__ = ["create_app"]
