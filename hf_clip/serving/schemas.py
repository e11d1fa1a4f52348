"""Requests and answers of the server, as its OpenAPI document shows them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, FiniteFloat, StrictBool, StrictInt, StrictStr, Tag

from ..data.requests import MAX_LABELS, MAX_MAPPED_TEXTS, MAX_TEMPLATES

MAX_INPUTS = 2048
MAX_HITS = 1000
IMAGE_HELP = (
    "An image: base64 of its file, or a data: URI. An http or https address only where the server allows its host."
)
BAD_INPUT = 'write a text, token ids, {"image": ...} or {"text": ...}'


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageInput(_Body):
    """An image among the inputs."""

    image: StrictStr = Field(description=IMAGE_HELP)


class TextInput(_Body):
    """A text among the inputs."""

    text: StrictStr = Field(description="A text.")


class ImageAddress(_Body):
    """The image of a part of a message."""

    url: StrictStr = Field(description=IMAGE_HELP)
    detail: StrictStr | None = Field(None, description="Ignored: the model reads one size of images.")


class ImagePart(_Body):
    """A part of a message: an image."""

    type: Literal["image_url"]
    image_url: ImageAddress


class TextPart(_Body):
    """A part of a message: a text."""

    type: Literal["text"]
    text: StrictStr


Parts = Annotated[list[Annotated[ImagePart | TextPart, Field(discriminator="type")]], Field(min_length=1)]


class Message(_Body):
    """A message, in the form of chat requests."""

    role: StrictStr
    content: StrictStr | Parts


def _kind_of(value: Any) -> str | None:
    """Return the tag of one input."""
    if isinstance(value, str):
        return "~text"
    if isinstance(value, list):
        return "~token ids"
    if isinstance(value, dict | ImageInput | TextInput):
        fields = value if isinstance(value, dict) else type(value).model_fields
        return "~image" if "image" in fields else "~text object"
    return None


def _kind_of_input(value: Any) -> str | None:
    """Return the tag of `input`: one input, or a list of them."""
    is_ids = isinstance(value, list) and value and isinstance(value[0], int) and not isinstance(value[0], bool)
    return "~inputs" if isinstance(value, list) and not is_ids else _kind_of(value)


TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1, max_length=4096)]
Text = Annotated[StrictStr, Tag("~text")]
Ids = Annotated[TokenIds, Tag("~token ids")]
AnImage = Annotated[ImageInput, Tag("~image")]
AText = Annotated[TextInput, Tag("~text object")]
OneInput = Annotated[
    Text | Ids | AnImage | AText,
    Discriminator(_kind_of, custom_error_type="input", custom_error_message=BAD_INPUT),
]
EmbeddingInputs = Annotated[list[OneInput], Field(min_length=1, max_length=MAX_INPUTS), Tag("~inputs")]
EmbeddingInput = Annotated[
    Text | Ids | AnImage | AText | EmbeddingInputs,
    Discriminator(_kind_of_input, custom_error_type="input", custom_error_message=BAD_INPUT),
]
Texts = Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_INPUTS)]
Images = Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingRequest(_Body):
    """Texts and images to embed, in OpenAI's form."""

    model: StrictStr | None = Field(None, description="A name that GET /v1/models lists; the server has one model.")
    input: EmbeddingInput | None = Field(
        None,
        description="One input, or a list of up to 2,048. An input is a text; a `data:` URI of an image; "
        '`{"image": BASE64 or data: URI}`; `{"text": TEXT}`; or the token ids of this model\'s tokenizer, from the '
        "start token to the end token.",
    )
    messages: list[Message] | None = Field(
        None,
        min_length=1,
        description="In place of `input`: messages that hold one text or one image between them.",
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64 is that of float32 numbers, least significant byte first."
    )
    dimensions: StrictInt | None = Field(None, description="The model's own size; CLIP's embeddings cannot be cut.")
    normalize: StrictBool = Field(True, description="Scale embeddings to length 1, so that products are cosines.")
    truncate: StrictBool = Field(False, description="Cut texts that are too long, instead of refusing them.")
    user: StrictStr | None = Field(None, description="Ignored, as clients of OpenAI's API may send it.")


class EmbeddingRow(BaseModel):
    """The embedding of one input."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="The place of the input.")
    embedding: list[float] | str = Field(description="The numbers, or base64 of them.")


class Usage(BaseModel):
    """Tokens of the texts, start and end included; images count none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """The embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingRow]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """The model that the server has."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time of the server's start.")
    owned_by: str = "hf_clip"
    dimensions: int = Field(description="The size of embeddings.")
    context_length: int = Field(description="Tokens that the model reads, start and end included.")


class ModelList(BaseModel):
    """The models that the server has: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ClassifyRequest(_Body):
    """An image, or several, and the labels to choose from."""

    image: StrictStr | Images = Field(description=f"{IMAGE_HELP} Or a list of images.")
    labels: Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_LABELS)] | None = Field(
        None, description="The labels; those, or the saved classifier, that the server was started with, unless given."
    )
    templates: Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_TEMPLATES)] | None = Field(
        None, description="Sentences around a label, {} in its place; several are averaged."
    )
    mode: Literal["one", "any", "each"] | None = Field(
        None,
        description="one, the default: probabilities over the labels; any: over these and `none of these`; each: of "
        "each by itself. A saved classifier has its own.",
    )
    top_k: Annotated[int, Field(ge=1, le=MAX_LABELS)] | None = Field(None, description="The number of labels to give.")
    answer: Literal["scores", "decision"] = Field(
        "scores", description="The scores; or with them the labels that are taken, the margin and the reason."
    )


class LabelScore(BaseModel):
    """A label and its probability."""

    score: float
    label: str


class DecisionAnswer(BaseModel):
    """A decision about an image."""

    labels: list[LabelScore] = Field(description="The scores, best first.")
    decision: list[str] = Field(description="The labels that are taken; thresholds are those of a saved classifier.")
    margin: float = Field(description="By how much scores would have to change for another decision.")
    reason: str


class ScoreRequest(_Body):
    """Images and texts to compare, each with each."""

    images: Images = Field(description=f"{IMAGE_HELP} A list of them.")
    texts: Texts = Field(description="Complete texts; no template is applied.")
    truncate: StrictBool = Field(False, description="Cut texts that are too long, instead of refusing them.")


class ScoreAnswer(BaseModel):
    """Similarities of images (rows) and texts (columns)."""

    cosines: list[list[float]]
    logits: list[list[float]] = Field(description="Cosines times the model's scale; their softmax are probabilities.")


class SearchRequest(_Body):
    """A query: texts and images, which are added, texts to subtract; or an embedding."""

    text: StrictStr | Texts | None = Field(None, description="A text, or several.")
    image: StrictStr | Images | None = Field(None, description=f"{IMAGE_HELP} Or a list of images.")
    minus: StrictStr | Texts | None = Field(None, description="Texts to subtract.")
    vector: Annotated[list[FiniteFloat], Field(min_length=1, max_length=65536)] | None = Field(
        None, description="An embedding of the same model, in place of texts and images."
    )
    k: Annotated[int, Field(ge=1, le=MAX_HITS)] = Field(20, description="The number of images to find.")
    min_score: Annotated[float, Field(ge=-1, le=1)] = Field(-1.0, description="The least cosine.")
    where: Annotated[list[StrictStr], Field(max_length=16)] = Field(
        [], description="Conditions on columns of the index, such as `year>=2020`."
    )


class Hit(BaseModel):
    """An image that was found, with the columns of the index."""

    model_config = ConfigDict(extra="allow")
    path: str
    score: float = Field(description="The cosine.")
    row: int


class SearchAnswer(BaseModel):
    """The images that were found, best first."""

    hits: list[Hit]


class WhereRequest(_Body):
    """An image, and the texts to find in it."""

    image: StrictStr = Field(description=IMAGE_HELP)
    texts: Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_MAPPED_TEXTS)] = Field(
        description="Complete texts, such as `a red circle`."
    )
    method: Literal["dense", "windows", "gradient", "rollout"] = Field("dense", description="As in `hf-clip where`.")
    whole: StrictBool = Field(False, description="Read the image to its edges, not the square in its middle.")
    answer: Literal["peaks", "maps", "png"] = Field(
        "peaks", description="The highest place of each map; the maps as well; or a picture of the maps."
    )


class Peak(BaseModel):
    """The place where a text fits best."""

    text: str
    score: float = Field(
        description="Similarity minus that of texts that fit any place; below 0 the text fits nowhere."
    )
    x: int
    y: int
    map: str | None = Field(None, description="base64 of float32 (height, width), NaN outside of what the model reads.")


class WhereAnswer(BaseModel):
    """Where each text is, in pixels of the image as it was read."""

    width: int = Field(description="Of the image that was read: larger ones are made smaller first.")
    height: int
    found: list[Peak]


class ErrorDetail(BaseModel):
    """One sentence, and the part of the request that it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """An error, in OpenAI's form."""

    error: ErrorDetail


class Health(BaseModel):
    """The state of the server."""

    status: str


__all__ = [
    "MAX_INPUTS",
    "ClassifyRequest",
    "DecisionAnswer",
    "EmbeddingAnswer",
    "EmbeddingRequest",
    "ErrorAnswer",
    "Health",
    "ImageInput",
    "LabelScore",
    "ModelCard",
    "ModelList",
    "ScoreAnswer",
    "ScoreRequest",
    "SearchAnswer",
    "SearchRequest",
    "TextInput",
    "WhereAnswer",
    "WhereRequest",
]
