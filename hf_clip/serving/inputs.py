"""Inputs of requests, checked and named: images as bytes, texts as token ids."""

import base64
import binascii
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from ..data.requests import MAX_CHARACTERS, MAX_UPLOAD_BYTES, RequestError, open_upload
from ..utils.text import printable
from .addresses import fetch_image
from .engine import ServedModel
from .refusals import Refusal
from .schemas import EmbeddingRequest, ImageInput, ImagePart, Message, TextInput

# an image among texts, as some clients send it; a text that begins like this is taken for an image
DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.+=/-]+)*,", re.IGNORECASE)
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
MAX_REQUEST_CHARACTERS = 1_000_000
# of these formats a file with several frames is an animation; an MPO of a phone has previews instead
ANIMATED = ("GIF", "WEBP", "PNG", "TIFF")


class Item(NamedTuple):
    """An image or a text of a request.

    Args:
        kind: "image" or "text".
        value: The image's file, or the text's token ids.
        param: The name of its place, such as `input[3]`.
    """

    kind: str
    value: bytes | tuple[int, ...]
    param: str


class InputReader:
    """Read the inputs of requests for one model; whatever is refused is named by its place.

    Args:
        served: The model.
        hosts: Hosts that images are downloaded from.
    """

    def __init__(self, served: ServedModel, hosts: Collection[str] = ()):
        self._served, self._hosts = served, hosts
        self._start, self._end = served.start_and_end()

    def read_embedding_request(self, request: EmbeddingRequest) -> list[Item]:
        """Return the items that a request wants embedded, in order.

        Raises:
            Refusal: An input cannot be read.
        """
        if (request.input is None) == (request.messages is None):
            raise Refusal(422, "input and messages: send one of the two", "input")
        if request.messages is not None:
            return [self._read_messages(request.messages, request.truncate)]
        given = request.input
        is_list = isinstance(given, list) and not isinstance(given[0], int)
        inputs: list[Any] = given if is_list else [given]  # type: ignore[assignment]
        params = [f"input[{place}]" for place in range(len(inputs))] if is_list else ["input"]
        return self.read_all(zip(params, inputs, strict=True), request.truncate)

    def read_all(self, inputs: Iterable[tuple[str, Any]], truncate: bool | None = None) -> list[Item]:
        """Return items of named inputs; texts are tokenized together, and cut if `truncate` is True.

        None is for routes that have no such option.
        """
        items: list[Item | None] = []
        texts: list[tuple[int, str, str]] = []
        for param, value in inputs:
            if isinstance(value, TextInput) or (isinstance(value, str) and not DATA_URI.match(value)):
                texts.append((len(items), param, value.text if isinstance(value, TextInput) else value))
                items.append(None)
            elif isinstance(value, list):
                items.append(Item("text", self._checked_ids(value, param), param))
            else:
                items.append(self.read_image(value.image if isinstance(value, ImageInput) else value, param))
        for (place, param, _), ids in zip(texts, self._tokenize(texts, truncate), strict=True):
            items[place] = Item("text", ids, param)
        return [item for item in items if item is not None]

    def read_texts(self, texts: Sequence[str], param: str, truncate: bool | None = None) -> list[Item]:
        """Return items of texts, whatever they look like."""
        inputs = [TextInput(text=text) for text in texts]
        return self.read_all(zip(_params(texts, param), inputs, strict=True), truncate)

    def read_images(self, images: str | Sequence[str], param: str) -> list[Item]:
        """Return items of one image or several."""
        if isinstance(images, str):
            return [self.read_image(images, param)]
        return [self.read_image(image, each) for each, image in zip(_params(images, param), images, strict=True)]

    def read_image(self, text: str, param: str) -> Item:
        """Return the item of an image in any of its forms, whose header has been checked."""
        return Item("image", naming_place(param, self._image_content, text), param)

    def _image_content(self, text: str) -> bytes:
        if ADDRESS.match(text):
            content = fetch_image(text, self._hosts)
        else:
            content = _decode_base64(text)
        image = open_upload(content)
        if image.format in ANIMATED and getattr(image, "is_animated", False):
            raise RequestError(f"the {image.format} has several frames: send one of them")
        return content

    def _tokenize(self, texts: Sequence[tuple[int, str, str]], truncate: bool | None) -> list[tuple[int, ...]]:
        for _, param, text in texts:
            naming_place(param, _check_text, text)
        total = sum(len(text) for _, _, text in texts)
        if total > MAX_REQUEST_CHARACTERS:
            raise Refusal(
                422, f"the texts have {total:,} characters, at most {MAX_REQUEST_CHARACTERS:,} are read: send fewer"
            )
        found = self._served.token_ids([text for _, _, text in texts], bool(truncate)) if texts else []
        for (_, param, _), ids in zip(texts, found, strict=True):
            if len(ids) > self._served.context_length:
                advice = "shorten it" if truncate is None else 'shorten it, or send "truncate": true'
                length = self._served.context_length
                raise Refusal(422, f"{param} has {len(ids):,} tokens, the model reads {length}: {advice}", param)
        return [tuple(ids) for ids in found]

    def _checked_ids(self, ids: list[int], param: str) -> tuple[int, ...]:
        inner = ids[1:-1]
        if len(ids) < 2 or (ids[0], ids[-1]) != (self._start, self._end) or max(inner, default=0) >= self._start:
            raise Refusal(
                422,
                f"{param} has no token ids of this model: they begin with {self._start} and end with {self._end}; send "
                "texts instead (in LangChain: check_embedding_ctx_length=False)",
                param,
            )
        if len(ids) > self._served.context_length:
            raise Refusal(422, f"{param} has {len(ids):,} tokens, the model reads {self._served.context_length}", param)
        return tuple(ids)

    def _read_messages(self, messages: Sequence[Message], truncate: bool) -> Item:
        parts: list[Any] = []
        for message in messages:
            parts += [message.content] if isinstance(message.content, str) else message.content
        if len(parts) != 1:
            raise Refusal(
                422,
                f"messages have {len(parts)} parts, CLIP embeds one image or one text at a time: send several as input",
                "messages",
            )
        [part] = parts
        if isinstance(part, ImagePart):
            return self.read_image(part.image_url.url, "messages")
        return self.read_texts([part if isinstance(part, str) else part.text], "messages", truncate)[0]


def naming_place(param: str, read: Callable[..., Any], *arguments: Any) -> Any:
    """Call `read`; its RequestError becomes a Refusal that names `param`."""
    try:
        return read(*arguments)
    except RequestError as error:
        raise refusal_of(error, param) from error


def refusal_of(error: RequestError, param: str) -> Refusal:
    """Return the refusal of a request whose part `param` is wrong."""
    return Refusal(422, f"{param}: {printable(error)}", param)


def _params(values: Sequence[Any], param: str) -> list[str]:
    return [f"{param}[{place}]" for place in range(len(values))]


def _check_text(text: str) -> None:
    if not text.strip():
        raise RequestError("the text is empty: write one")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"the text has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read: shorten it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("the text has half of a surrogate pair: send valid Unicode") from None


def _decode_base64(text: str) -> bytes:
    if found := DATA_URI.match(text):
        if not found[0].lower().endswith(";base64,"):
            raise RequestError("the data: URI is not in base64: begin it with data:image/png;base64,")
        text = text[found.end() :]
    if len(text) * 3 // 4 > MAX_UPLOAD_BYTES + 3:
        raise RequestError(f"the file has over {MAX_UPLOAD_BYTES:,} bytes: make it smaller")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("it is not valid base64: send base64 of the image's file, or a data: URI") from None


__all__ = ["InputReader", "Item", "naming_place", "refusal_of"]
