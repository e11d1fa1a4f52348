"""The page itself, made with Gradio."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..localization.maps import ALL_METHODS
from ..plots.maps import maps_figure
from ..search.index import ImageIndex
from ..utils.packages import require
from ..zero_shot.prompts import TEMPLATE
from .answers import MAX_LABELS, find, label_scores, locate

MAX_BYTES = 20_000_000
THREADS = 4
USER_ERRORS = (ValueError, TypeError, OSError)


def build_page(
    clip: tuple[Any, Any], other: tuple[Any, Any] | None = None, title: str = "CLIP", index: ImageIndex | None = None
) -> Any:
    """Make the page: a `gradio.Blocks` with the tabs Classify, Where, Search for an index, and Compare for two models.

    Args:
        clip: A model, in evaluation mode, and its processor.
        other: Those to compare with.
        title: The heading.
        index: Images to search, as `ImageIndex.load` opens them with `clip`; their thumbnails are shown.

    Returns:
        The page; `launch_page` serves it.

    Raises:
        MissingPackageError: Gradio or matplotlib is not installed.
    """
    require("gradio", "app", "the app")
    require("matplotlib", "app", "the app")
    import gradio

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}")
        with gradio.Tab("Classify"):
            inputs = [_photo(gradio), _labels(gradio), _templates(gradio), _top_k(gradio)]
            _answer(gradio, partial(label_scores, *clip), inputs, lambda: [gradio.Label(label="scores")], "classify")
        with gradio.Tab("Where"):
            photo = _photo(gradio)
            texts = gradio.Textbox("a cat\na sofa", lines=3, label="texts, one a line")
            method = gradio.Radio(list(ALL_METHODS), value="dense", label="method")
            whole = gradio.Checkbox(label="to the edges, instead of the square in the middle")
            inputs = [photo, texts, method, whole]
            _answer(gradio, partial(draw_where, *clip), inputs, lambda: [gradio.Plot(show_label=False)], "where")
        if index is not None:
            with gradio.Tab("Search"):
                photo = _photo(gradio)
                texts = gradio.Textbox("a cat", lines=2, label="texts, one a line; an image may be added")
                count = gradio.Slider(1, 50, value=10, step=1, label="images to find")
                _answer(gradio, partial(find, index), [photo, texts, count], lambda: [_gallery(gradio)], "search")
        if other is not None:
            with gradio.Tab("Compare"):
                inputs = [_photo(gradio), _labels(gradio), _templates(gradio), _top_k(gradio)]
                names = [display_name(*each) for each in (clip, other)]
                _answer(
                    gradio,
                    partial(compare_models, clip, other),
                    inputs,
                    partial(_side_by_side, gradio, names),
                    "compare",
                )
    return page.queue(default_concurrency_limit=THREADS, max_size=256)


def launch_page(page: Any, host: str = "127.0.0.1", port: int | None = None, *, wait: bool = True) -> str:
    """Serve a page of `build_page`, and return its address once it stops, or at once with `wait=False`.

    Uploads of more than MAX_BYTES are refused, and no file of this machine but uploads is served.
    """
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MAX_BYTES,
        allowed_paths=[],
        show_error=True,
        prevent_thread_lock=not wait,
        quiet=not wait,
    )
    return address


def draw_where(*arguments: Any) -> Any:
    """Return the figure of `locate`'s maps."""
    image, texts, maps = locate(*arguments)
    return maps_figure(image, texts, maps.numpy())


def compare_models(
    clip: tuple[Any, Any], other: tuple[Any, Any], *arguments: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores of both models."""
    return label_scores(*clip, *arguments), label_scores(*other, *arguments)


def display_name(model: Any, _processor: Any) -> str:
    """Return the last part of a model's folder or id."""
    return str(model.name_or_path).rstrip("/").rpartition("/")[2] or type(model).__name__


def _photo(gradio: Any) -> Any:
    """Return an image input. It hands on the uploaded file, not yet decoded."""
    photo = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="image", height=320)
    # Gradio would decode an image of any size here; a subclass would make it write a stub file beside this one
    photo.preprocess = lambda upload: None if upload is None else upload.path
    return photo


def _labels(gradio: Any) -> Any:
    return gradio.Textbox("a cat\na dog", lines=4, label=f"labels, one a line, at most {MAX_LABELS:,}")


def _templates(gradio: Any) -> Any:
    return gradio.Textbox(TEMPLATE, lines=1, max_lines=5, label="templates, {} in place of the label, one a line")


def _top_k(gradio: Any) -> Any:
    return gradio.Slider(1, 20, value=5, step=1, label="labels to show")


def _gallery(gradio: Any) -> Any:
    return gradio.Gallery(label="found", columns=5, format="png")


def _side_by_side(gradio: Any, names: list[str]) -> list[Any]:
    with gradio.Row():
        return [gradio.Label(label=name) for name in names]


def _answer(gradio: Any, function: Callable, inputs: list[Any], outputs: Callable[[], list[Any]], name: str) -> None:
    """Put a button under `inputs` and `outputs` below, which it fills; errors come up as sentences."""

    def answered(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except USER_ERRORS as error:
            raise gradio.Error(str(error), print_exception=False) from error

    button = gradio.Button(name.capitalize(), variant="primary")
    button.click(answered, inputs, outputs(), api_name=name)


__all__ = ["build_page", "launch_page"]
