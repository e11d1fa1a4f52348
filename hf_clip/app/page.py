"""The page of the app, built with Gradio: one image, and a tab for each thing to do with it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from PIL import Image, ImageDraw

from ..data.images import Exif
from ..data.requests import MAX_LABELS, MAX_MAPPED_TEXTS, MAX_UPLOAD_BYTES, RequestError
from ..plots.maps import maps_figure
from ..search.index import ImageIndex
from ..utils.packages import require
from ..zero_shot.classifier import ZeroShotClassifier
from ..zero_shot.prompts import TEMPLATE
from .answers import check_upload, decide_upload, find, label_scores, locate

THREADS = 4
MAX_WAITING = 256
# uploads are looked through every so many seconds, and deleted when they are this old
DELETE_EVERY, DELETE_AFTER = 600, 3600
USER_ERRORS = (ValueError, TypeError, OSError)
METHOD_NOTES = {
    "dense": "how well each place fits the text; fast",
    "windows": "how well the pictures around each place fit the text; the most reliable, slow",
    "gradient": "how much each place adds to the score of the whole image",
    "rollout": "where the model attends, the same for every text",
}
MODE_NOTES = {
    "one": "which label fits best; always one",
    "any": "which label fits best, or none of these",
    "each": "each label by itself: several may fit, or none",
}
# what no other machine should be able to change: no public link, no file of this machine but uploads
LAUNCH_OPTIONS: dict[str, Any] = {
    "share": False,
    "max_file_size": MAX_UPLOAD_BYTES,
    "allowed_paths": [],
    "show_error": True,
}


def build_page(
    clip: tuple[Any, Any],
    other: tuple[Any, Any] | None = None,
    title: str = "CLIP",
    index: ImageIndex | None = None,
    classifier: ZeroShotClassifier | None = None,
    exif: Exif = "apply",
) -> Any:
    """Build the page: a `gradio.Blocks` with an image and the tabs Classify, Decide, Where, Search and Compare.

    Args:
        clip: A model, in evaluation mode, and its processor.
        other: A second model and its processor, for the tab Compare.
        title: The heading.
        index: An index that `ImageIndex.load` opened with `clip`, for the tab Search; everyone who reaches the page
            sees thumbnails of its images.
        classifier: A classifier of `clip`, such as a calibrated one, for the tab Decide.
        exif: "apply" turns photos as their EXIF orientation says; "ignore" does as the original. The tab Search does as
            the index did, the tab Decide as the images were read that the classifier learned from.

    Returns:
        The page; `launch_page` serves it.

    Raises:
        MissingPackageError: Gradio or matplotlib is not installed.
    """
    require("gradio", "app", "the app")
    require("matplotlib", "app", "the app")
    import gradio

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(DELETE_EVERY, DELETE_AFTER)) as page:
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                photo = _photo(gradio)
                gradio.Examples(_examples(), photo, label="examples")
            with gradio.Column(scale=2, min_width=320):
                with gradio.Tab("Classify"):
                    _classify_tab(gradio, photo, "classify", partial(label_scores, *clip, exif=exif), ["scores"])
                if classifier is not None:
                    with gradio.Tab("Decide"):
                        _decide_tab(gradio, photo, partial(decide_upload, classifier, exif=exif))
                with gradio.Tab("Where"):
                    _where_tab(gradio, photo, partial(draw_where, *clip, exif=exif))
                if index is not None:
                    with gradio.Tab("Search"):
                        _search_tab(gradio, photo, index)
                if other is not None:
                    with gradio.Tab("Compare"):
                        names = [display_name(*each) for each in (clip, other)]
                        _classify_tab(gradio, photo, "compare", partial(compare_models, clip, other, exif=exif), names)
    return page.queue(default_concurrency_limit=THREADS, max_size=MAX_WAITING)


def launch_page(
    page: Any,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: list[tuple[str, str]] | None = None,
    *,
    wait: bool = True,
) -> str:
    """Serve a page of `build_page`; return its address when it stops, or at once with `wait=False`.

    Args:
        page: The page.
        host: The address to listen at.
        port: The port (default: 7860, or the next free one).
        auth: Pairs of name and password; without any the page is open to everyone who reaches it.
        wait: Return when the server stops.
    """
    _, address, _ = page.launch(
        server_name=host, server_port=port, auth=auth, prevent_thread_lock=not wait, quiet=not wait, **LAUNCH_OPTIONS
    )
    return address


def draw_where(*arguments: Any, exif: Exif = "apply") -> Any:
    """Draw the maps of `locate` as a figure."""
    image, texts, maps = locate(*arguments, exif=exif)
    return maps_figure(image, texts, maps.numpy(), arguments[-2])


def compare_models(
    clip: tuple[Any, Any], other: tuple[Any, Any], *arguments: Any, exif: Exif = "apply"
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores of both models for the same image and labels."""
    return label_scores(*clip, *arguments, exif=exif), label_scores(*other, *arguments, exif=exif)


def display_name(model: Any, _processor: Any) -> str:
    """Return the last part of a model's path or id."""
    return str(model.name_or_path).rstrip("/").rpartition("/")[2] or type(model).__name__


def _photo(gradio: Any) -> Any:
    """Make the image input; it passes on the path of an upload, which is not yet decoded."""
    photo = gradio.Image(type="filepath", sources=["upload", "webcam", "clipboard"], label="image", height=280)

    def checked(upload: Any) -> str | None:
        # a request may hold any path here: Gradio checks the path of gr.File, but not that of gr.Image
        try:
            return None if upload is None else check_upload(upload.path, photo.GRADIO_CACHE)
        except RequestError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    # Gradio would decode an image of any size here; in a subclass it would write a stub file beside this module
    photo.preprocess = checked
    return photo


def _examples() -> list[str]:
    """Draw the example images into a temporary folder and return their paths."""
    folder = Path(mkdtemp(prefix="hf_clip_app_"))
    red, blue, green = (220, 40, 40), (40, 80, 220), (40, 160, 60)
    shapes = {
        "red circle": [("ellipse", (60, 60, 196, 196), red)],
        "blue square": [("rectangle", (60, 60, 196, 196), blue)],
        "red circle and green square": [
            ("ellipse", (20, 70, 116, 166), red),
            ("rectangle", (140, 90, 236, 186), green),
        ],
    }
    paths = []
    for name, drawn in shapes.items():
        image = Image.new("RGB", (256, 256), "white")
        for kind, box, color in drawn:
            getattr(ImageDraw.Draw(image), kind)(box, fill=color)
        paths.append(str(folder / f"{name}.png"))
        image.save(paths[-1])
    return paths


def _classify_tab(gradio: Any, photo: Any, name: str, function: Callable, models: list[str]) -> None:
    with gradio.Row():
        labels = gradio.Textbox(
            "a red circle\na blue square", lines=3, label=f"labels, one per line, at most {MAX_LABELS:,}"
        )
        with gradio.Column():
            templates = gradio.Textbox(
                TEMPLATE, lines=1, max_lines=5, label="templates, one per line, with {} for the label"
            )
            top_k = gradio.Slider(1, 20, value=5, step=1, label="labels to show")
    choices = [(f"{mode}: {note}", mode) for mode, note in MODE_NOTES.items()]
    mode = gradio.Radio(choices, value="one", label="scores")

    def outputs() -> list[Any]:
        with gradio.Row():
            return [gradio.Label(label=model) for model in models]

    _answer(gradio, function, [photo, labels, templates, top_k, mode], outputs, name)


def _decide_tab(gradio: Any, photo: Any, function: Callable) -> None:
    top_k = gradio.Slider(1, 20, value=5, step=1, label="labels to show")
    _answer(
        gradio,
        function,
        [photo, top_k],
        lambda: [gradio.Label(label="scores"), gradio.Textbox(label="decision")],
        "decide",
    )


def _where_tab(gradio: Any, photo: Any, function: Callable) -> None:
    texts = gradio.Textbox("a red circle", lines=2, label=f"texts, one per line, at most {MAX_MAPPED_TEXTS}")
    choices = [(f"{method}: {note}", method) for method, note in METHOD_NOTES.items()]
    method = gradio.Radio(choices, value="dense", label="method")
    whole = gradio.Checkbox(label="read the image to its edges, instead of the square in its middle")
    inputs = [photo, texts, method, whole]
    _answer(gradio, function, inputs, lambda: [gradio.Plot(show_label=False)], "where")


def _search_tab(gradio: Any, photo: Any, index: ImageIndex) -> None:
    texts = gradio.Textbox("a red circle", lines=2, label="texts, one per line; several are added")
    with_image = gradio.Checkbox(label="add the image to the query")
    count = gradio.Slider(1, 50, value=10, step=1, label="images to find")
    inputs = [photo, texts, count, with_image]
    gallery = partial(gradio.Gallery, label="found", columns=5, format="png")
    _answer(gradio, partial(find, index), inputs, lambda: [gallery()], "search")


def _answer(gradio: Any, function: Callable, inputs: list[Any], outputs: Callable[[], list[Any]], name: str) -> None:
    """Add a button and below it outputs, which the function fills; errors are shown as sentences."""

    def answered(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except USER_ERRORS as error:
            raise gradio.Error(str(error), print_exception=False) from error

    button = gradio.Button(name.capitalize(), variant="primary")
    button.click(answered, inputs, outputs(), api_name=name)


__all__ = ["LAUNCH_OPTIONS", "build_page", "display_name", "launch_page"]
