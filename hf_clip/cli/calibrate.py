"""`hf-clip calibrate`."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.files import check_output
from ..utils.text import say
from . import common
from .blocks import DecisionMode, Loading, Reading, expanded
from .classify import check_plot, classifier_options, read_labels
from .common import CommandError
from .options import AllowScheme, AsJson, ClassifierFile, Force, LabeledImages, Labels, ModelId, Plot, Templates

if TYPE_CHECKING:
    from ..data.rows import Rows


@expanded
def calibrate(
    data: LabeledImages,
    model: ModelId,
    output: ClassifierFile,
    labels: Labels = None,
    templates: Templates = None,
    *,
    mode: DecisionMode,
    precision: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Choose thresholds: this share of the labels given is right.")
    ] = None,
    recall: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Choose thresholds: this share of labels is found.")
    ] = None,
    as_json: AsJson = False,
    plot: Plot = None,
    force: Force = False,
    reading: Reading,
    loading: Loading,
    allow_scheme: AllowScheme = None,
) -> None:
    """Calibrate the scores of labels by images whose labels are known, and save the classifier.

    Images of a class "none of these" show none of the labels; an image in several rows of a table shows several.

    Example: hf-clip calibrate pets --model ViT-B/32 --precision 0.95 --output pets.safetensors
    """
    saved, chosen = classifier_options(labels, templates, mode)
    names = None if labels is None or saved is not None else read_labels(labels)
    check_output(output, force, [".safetensors"])
    check_plot(plot, force)

    from ..evaluation.tasks import chosen_templates, to_rows
    from ..zero_shot.classifier import ZeroShotClassifier

    rows = to_rows(data, allow_schemes=allow_scheme or ())
    loaded, processor = common.load_model(model, loading)
    if saved is None:
        names, images, shown = labeled(rows, names)
        chosen["templates"] = chosen_templates(rows, chosen.get("templates"))
        classifier = ZeroShotClassifier(loaded, processor, names, **chosen)
    else:
        classifier = ZeroShotClassifier.load(saved, loaded, processor)
        _, images, shown = labeled(rows, classifier.labels, by_name=True)
    calibrated = classifier.calibrate(images, shown, precision=precision, recall=recall, **reading.options)
    calibrated.save(output)
    assert calibrated.calibration is not None
    report = calibrated.calibration.report
    if as_json:
        say(json.dumps(report, ensure_ascii=False))
    else:
        for line in lines_of(report):
            say(line)
    if plot is not None:
        from ..plots.reliability import draw_reliability

        draw_reliability(report, plot)
        say(f"drawn: {plot}", err=True)


def labeled(
    rows: "Rows", names: Sequence[str] | None, by_name: bool = False
) -> tuple[list[str], list[Any], list[list[str]]]:
    """Return the labels, the images, and the labels that each image shows, none for those of the class NONE_LABEL.

    Names stand in the order of the classes; with `by_name` in any order if the classes have the same names.
    """
    from ..data.labels import check_words, match_names, plain_name
    from ..data.rows import DataError
    from ..zero_shot.head import NONE_LABEL

    if without := next((row.name for row in rows if row.label is None), None):
        raise DataError(f"{without} has no label: give it one, or leave it out")
    known = rows.labels or [str(place) for place in range(1 + max(row.label or 0 for row in rows))]
    classes = [place for place, name in enumerate(known) if plain_name(name) != plain_name(NONE_LABEL)]
    if names is None:
        names = [known[place] for place in classes]
        check_words(names, rows.name)
    if len(names) != len(classes):
        raise CommandError(
            f"{rows.name} has {len(classes)} classes beside {NONE_LABEL!r}, {len(names)} labels are given: name each, "
            "in their order"
        )
    if by_name:
        names = match_names([known[place] for place in classes], names, "the classifier")
    name_of = dict(zip(classes, names, strict=True))
    images: dict[Any, Any] = {}
    shown: dict[Any, list[str]] = {}
    for number, row in enumerate(rows):
        key = number if row.image.in_memory else row.image.key
        images.setdefault(key, row.image)
        shown.setdefault(key, []).extend([name_of[row.label]] if row.label in name_of else [])
    return list(names), list(images.values()), list(shown.values())


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """Return the lines that tell of a calibration."""
    errors = " before, ".join(f"{report['error'][name]:.3f}" for name in report["error"])
    after = " after, by held-out folds" if "after" in report["error"] else " before"
    lines = [f"{report['images']:,} images: expected calibration error {errors}{after}"]
    for kind, wanted in report["wanted"].items():
        for name, threshold in report["thresholds"].items():
            lines.append(
                f"threshold {threshold['value']:.3f} for {name}: {kind} {threshold['share']:.3f} "
                f"({threshold['low']:.3f} to {threshold['high']:.3f}) of {threshold['count']:,}, {wanted:g} is "
                + ("assured with 95 % confidence" if threshold["assured"] else "not assured")
            )
    return lines + [f"note: {note}" for note in report["notes"]]
