import json

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from support.data_sets import captions, class_folders, labeled_wds, multilabel_wds
from support.photos import load

from hf_clip.data.images import ImageRef, UnreadableImageError
from hf_clip.data.read import read_rows
from hf_clip.data.rows import DataError
from hf_clip.data.wds import read_wds
from hf_clip.embedding import images
from hf_clip.embedding.images import embed_images
from hf_clip.embedding.texts import embed_texts
from hf_clip.evaluation import comparison, embeddings, linear_probe, read_result, retrieval, zero_shot
from hf_clip.evaluation.results import ResultsError, difference
from hf_clip.evaluation.tasks import embed_classes, score
from hf_clip.few_shot.classifier import FewShotClassifier
from hf_clip.metrics import mean_average_precision, retrieval_metrics
from hf_clip.zero_shot.classifier import ZeroShotClassifier

TEMPLATES = ["a photo of a {}.", "a {}"]


@pytest.fixture
def model(repositories, family):
    return load(repositories[family])


@pytest.fixture
def count_embedded(monkeypatch):
    """Count the images of data sets, and not the probe's, that go through the model."""
    counts, embed = [], images.image_features

    def count(*arguments, **options):
        for items, embeds in embed(*arguments, **options):
            counts.append(sum(isinstance(item, ImageRef) for item in items))
            yield items, embeds

    monkeypatch.setattr(images, "image_features", count)
    return lambda: sum(counts)


def test_zero_shot_is_the_classifier_bit_for_bit(model, tmp_path):
    rows = read_rows(class_folders(tmp_path / "photos"))
    classifier = ZeroShotClassifier(*model, rows.labels, TEMPLATES)
    expected = classifier.logits([row.image for row in rows], batch_size=4)
    embeds = embeddings.image_embeds(*model, rows, batch_size=4)
    logits = torch.cat(list(score(model[0], embeds, embed_classes(*model, rows.labels, TEMPLATES), 4)))
    assert torch.equal(logits, expected)
    result = zero_shot(*model, rows, templates=TEMPLATES, batch_size=4)
    targets = torch.tensor([row.label for row in rows])
    assert result.metrics["acc1"] == (expected.argmax(1) == targets).double().mean()
    assert zero_shot(*model, rows, templates=TEMPLATES, batch_size=1).metrics == result.metrics
    assert sum(count for _, _, count in result.details["confusions"]) == (expected.argmax(1) != targets).sum()


def test_images_of_several_classes_have_a_mean_average_precision(model, tmp_path):
    """That of the classifier's scores; what needs one label for each image says so."""
    rows = read_wds(multilabel_wds(tmp_path))
    result = zero_shot(*model, rows)
    logits = ZeroShotClassifier(*model, rows.labels, rows.templates).logits([row.image for row in rows])
    expected = mean_average_precision(logits, torch.from_numpy(rows.multi_hot()))
    assert result.main == ("mean_average_precision", expected)
    assert len(result.details["per_class_average_precision"]) == 2
    result.save(tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result
    assert str(comparison([result]).title).endswith(": zeroshot_multilabel, 8 images, 2 classes, chance 0.5000")
    for refusing in (lambda: linear_probe(*model, rows, rows, C=1.0), lambda: FewShotClassifier.fit(*model, rows)):
        with pytest.raises(DataError, match="may show several classes: give data with one label for each"):
            refusing()


def test_synonyms_are_averaged_as_prompts(model):
    embeds = embed_classes(*model, [["happy", "smiling"], "sad"], ["a {} face.", "{}"])
    prompts = embed_texts(*model, ["a happy face.", "happy", "a smiling face.", "smiling"])
    torch.testing.assert_close(embeds[0], torch.nn.functional.normalize(prompts.mean(0), dim=0))
    torch.testing.assert_close(embeds[1:], embed_classes(*model, ["sad"], ["a {} face.", "{}"]))


@pytest.mark.parametrize("layout", ["folders", "tars"])
def test_embeddings_are_made_once(model, layout, tmp_path, count_embedded):
    data = read_rows(class_folders(tmp_path / "photos")) if layout == "folders" else read_wds(labeled_wds(tmp_path))
    store = tmp_path / "store"
    first = zero_shot(*model, data, store=store)
    assert count_embedded() == len(data)
    other = zero_shot(*model, data, templates=["{}", "a drawing of {}"], store=store)
    assert count_embedded() == len(data)
    assert first.metrics == zero_shot(*model, data).metrics
    assert first.settings["prompts"] != other.settings["prompts"]


def test_a_stopped_run_embeds_the_rest(model, tmp_path, count_embedded):
    data = read_rows(class_folders(tmp_path / "photos", each=4))
    broken = tmp_path / "photos" / "red_circle" / "3.png"
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    store = tmp_path / "store"
    with pytest.raises(UnreadableImageError, match=r"3\.png"):
        zero_shot(*model, data, batch_size=2, store=store)
    done = count_embedded()
    assert done >= 4
    broken.write_bytes(content)
    result = zero_shot(*model, data, batch_size=2, store=store)
    assert count_embedded() == len(data)
    assert result.metrics == zero_shot(*model, data, batch_size=2).metrics


def test_retrieval_is_its_metrics_on_embeddings(model, tmp_path):
    folder = class_folders(tmp_path / "photos")
    data = [row | {"image": str(folder / row["image"]), "text": [row["text"], "a color"]} for row in captions(folder)]
    result = retrieval(*model, read_rows(data), k=[1, 3, 100])
    texts = embed_texts(*model, [text for row in data for text in row["text"]])
    images = embed_images(*model, [row["image"] for row in data])
    expected = retrieval_metrics(images, texts, torch.arange(6).repeat_interleave(2), k=[1, 3, 100])
    assert result.metrics == expected
    assert result.metrics["text_retrieval_recall@100"] == 1
    assert result.details["recall"]["text"][-1] == [12, 1]


def test_results_are_written_in_the_schema_of_clip_benchmark(model, tmp_path):
    result = zero_shot(*model, class_folders(tmp_path / "photos"), dataset="colors")
    result.save(tmp_path / "new" / "colors.json")
    content = json.loads((tmp_path / "new" / "colors.json").read_text())
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= content.keys()
    assert content["metrics"] == result.metrics
    known = read_result(tmp_path / "new" / "colors.json")
    known.check_is_of(result.settings, "m", "colors.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["colors.json"]
    with pytest.raises(ResultsError, match=r"colors\.json is of another model"):
        known.check_is_of(result.settings | {"probe": [0.9] * 16}, "m", "colors.json")
    with pytest.raises(ResultsError, match=r"was measured with data .*, not other"):
        known.check_is_of(result.settings | {"data": "other"}, "m", "colors.json")
    for text in (
        "",
        "[]",
        '{"dataset": 1}',
        '{"dataset": "a", "task": "b", "model": "c", "metrics": {}, "settings": 1}',
    ):
        (tmp_path / "half.json").write_text(text)
        with pytest.raises(ResultsError, match=r"half\.json"):
            read_result(tmp_path / "half.json")


def test_models_are_compared_on_the_same_data_only(repositories, tmp_path):
    first, second = (load(path) for path in repositories.values())
    folder = class_folders(tmp_path / "photos")
    results = [zero_shot(*model, folder, dataset="colors") for model in (first, second)]
    table = comparison(results)
    cell = next(iter(table.columns[2].cells))
    _, low, high = difference(*results, "acc1")
    change = results[1].metrics["acc1"] - results[0].metrics["acc1"]
    assert cell == f"{results[1].metrics['acc1']:.4f}\n{change:+.4f} [{low:+.4f}, {high:+.4f}]"
    (folder / "red_circle" / "0.png").unlink()
    with pytest.raises(ValueError, match="compare models on the same data"):
        comparison([results[0], zero_shot(*second, folder, dataset="colors")])


def test_bad_input_is_refused_by_name(repositories, tmp_path):
    model = load(repositories["tiny ViT"])
    folder = class_folders(tmp_path / "photos")
    rows = [row | {"image": str(folder / row["image"])} for row in captions(folder)]
    with pytest.raises(DataError, match=r"blue_square.0\.png has no label"):
        zero_shot(*model, rows)
    with pytest.raises(DataError, match=r"has 2 classes, 3 labels are given"):
        zero_shot(*model, folder, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"0\.png has no caption"):
        retrieval(*model, folder)
    with pytest.raises(DataError, match="the label 7, which is none of the 1 classes"):
        read_rows([{"image": rows[0]["image"], "label": 7}, {"image": rows[1]["image"], "label": "a"}])


def test_a_class_without_images_is_named_and_does_not_count(repositories, tmp_path):
    folder = class_folders(tmp_path / "photos")
    (folder / "a_third").mkdir()
    result = zero_shot(*load(repositories["tiny ViT"]), folder)
    assert result.details["classes_without_images"] == ["a third"]
    assert set(result.details["per_class_recall"]) == {"1 blue square", "2 red circle"}
    assert result.metrics["mean_per_class_recall"] == pytest.approx(
        sum(result.details["per_class_recall"].values()) / 2
    )


def test_embeddings_that_are_nan_are_refused(repositories, tmp_path, monkeypatch):
    broken = lambda *_, **__: iter([([None] * 6, torch.full((6, 64), torch.nan))])  # noqa: E731
    monkeypatch.setattr(embeddings, "image_features", broken)
    with pytest.raises(ValueError, match=r"the embeddings of .* hold NaN"):
        zero_shot(*load(repositories["tiny ViT"]), class_folders(tmp_path / "photos"))


def test_photographs_are_searched_by_their_captions(model):
    """Six of the eight pictures of OpenAI's notebook; rocket and motorcycle do not come with scikit-image."""
    texts = {"page": "a page of text", "chelsea": "a cat", "astronaut": "an astronaut", "camera": "a photographer"}
    texts |= {"horse": "a horse", "coffee": "a cup of coffee"}
    rows = [
        {"image": Image.fromarray(np.array(getattr(skimage.data, name)())), "text": text}
        for name, text in texts.items()
    ]
    result = retrieval(*model, rows, k=[1, 6])
    assert result.settings["images"] == result.settings["texts"] == 6
    assert result.metrics["image_retrieval_recall@6"] == result.metrics["text_retrieval_recall@6"] == 1


def test_wordnet_ids_are_no_class_names(repositories, tmp_path):
    """They were put into prompts, as "a photo of a n01440764."."""
    folder = class_folders(tmp_path / "photos")
    for path, name in zip(sorted(folder.iterdir()), ("n01440764", "n02102040"), strict=True):
        path.rename(folder / name)
    with pytest.raises(DataError, match="named by WordNet ids, such as n01440764: give their names"):
        zero_shot(*load(repositories["tiny ViT"]), folder)
    assert zero_shot(*load(repositories["tiny ViT"]), folder, ["tench", "spaniel"]).settings["classes"] == 2
