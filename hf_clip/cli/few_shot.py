"""`hf-clip few-shot`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..utils.files import check_output
from ..utils.packages import require
from ..utils.text import say
from . import common
from .blocks import Loading, Reading, expanded
from .classify import read_labels, read_templates
from .options import (
    ADVANCED,
    AllowScheme,
    AsJson,
    ClassifierFile,
    Force,
    LabeledImages,
    Labels,
    ModelId,
    Seed,
    Shots,
    Store,
    Templates,
)


@expanded
def few_shot(
    data: LabeledImages,
    output: ClassifierFile,
    model: ModelId,
    head: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="prototypes, ridge, logistic or cache; auto takes the best on pictures that are held out.",
        ),
    ] = "auto",
    labels: Labels = None,
    templates: Templates = None,
    shots: Shots = None,
    as_json: AsJson = False,
    store: Store = None,
    force: Force = False,
    folds: Annotated[int, typer.Option(min=2, help="Parts that are held out in turn.", rich_help_panel=ADVANCED)] = 5,
    seed: Seed = 0,
    *,
    reading: Reading,
    loading: Loading,
    allow_scheme: AllowScheme = None,
) -> None:
    """Make a classifier from a few pictures of each class and from the names of the classes.

    Nothing is trained but a small head on the embeddings, within seconds. Its accuracy is measured on pictures that are
    held out in turn, with an interval, beside zero-shot classification and a linear probe.

    Example: hf-clip few-shot photos --model clip-vit-base-patch32 --output photos.safetensors
    """
    require("sklearn", "eval", "few-shot")
    check_output(output, force, [".safetensors"])
    names = None if labels is None else read_labels(labels)
    texts = None if templates is None else read_templates(templates)
    from ..evaluation.tasks import to_rows
    from ..few_shot.classifier import FewShotClassifier, check_head, verdicts

    check_head(head)
    rows = to_rows(data, allow_schemes=allow_scheme or ())
    loaded, processor = common.load_model(model, loading)
    classifier = FewShotClassifier.fit(
        loaded,
        processor,
        rows,
        labels=names,
        templates=texts,
        head=head,
        shots=shots,
        folds=folds,
        seed=seed,
        dataset=Path(data).stem,
        store=store,
        **reading.options,
    )
    classifier.save(output)
    result = classifier.result
    assert result is not None
    if as_json:
        say(json.dumps(result.to_json(), ensure_ascii=False))
    elif result.metrics:
        from rich.console import Console

        Console().print(result.table())
    for line in verdicts(result):
        say(line, err=True)
    say(f"written: {output}", err=True)
