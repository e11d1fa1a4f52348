"""The app's answers without a page; tests/integrations/test_app.py asks them of a server."""

import os
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import run
from support.image_corpus import EXIF_ORIENTATION, random_image
from support.plain import load

import hf_clip
from hf_clip.app import answers
from hf_clip.app.answers import label_scores, locate
from hf_clip.cli.common import CommandError
from hf_clip.cli.serve_app import read_users
from hf_clip.data.requests import START_OF_SCAN, RequestError
from hf_clip.search.index import ImageIndex


@pytest.fixture
def clip(repositories, family):
    return load(repositories[family])


@pytest.fixture
def upload(tmp_path):
    random_image("RGB", 70, 40, np.random.default_rng(0)).save(tmp_path / "upload.png")
    return str(tmp_path / "upload.png")


def test_classify_gives_the_classifier_s_scores(any_clip, upload):
    clip = any_clip
    found = label_scores(clip.model, clip.processor, upload, " a cat\n\na dog\na cat\nbird\n", "{}\nmy {}\n", 2.0)
    [expected] = hf_clip.ZeroShotClassifier(clip.model, clip.processor, ["a cat", "a dog", "bird"], ["{}", "my {}"])(
        upload, top_k=2
    )
    assert found == {each["label"]: each["score"] for each in expected}


@pytest.mark.parametrize("mode", ["any", "each"])
def test_classify_and_decide_in_other_modes(clip, upload, tmp_path, mode):
    classifier = hf_clip.ZeroShotClassifier(clip.model, clip.processor, ["a cat", "a dog"], mode=mode)
    [(_, decision)] = classifier.decisions(upload)
    expected = {each["label"]: each["score"] for each in decision.scores}
    assert ("none of these" in expected) == (mode == "any")
    assert label_scores(clip.model, clip.processor, upload, "a cat\na dog", "", 5, mode) == expected
    scores, told = answers.decide_upload(classifier, upload, 5)
    assert scores == expected
    assert told == f"{', '.join(decision.labels) or 'none of these'}: {decision.reason}"


def test_locate_gives_the_maps_of_a_picture_that_fits_the_page(any_clip, upload, monkeypatch):
    clip = any_clip
    image, texts, maps = locate(clip.model, clip.processor, upload, "a cat\na dog", "dense", True)
    expected = hf_clip.where(clip.model, clip.processor, upload, texts, whole=True)
    assert texts == ["a cat", "a dog"]
    assert torch.equal(maps, expected)
    monkeypatch.setattr(answers, "MAX_MAP_SIDE", 35)
    image, _, maps = locate(clip.model, clip.processor, upload, "a cat", "dense", True)
    assert image.size == (35, 20)
    assert maps.shape == (1, 20, 35)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("absent.png", None, "cannot be read as an image"),
        ("text.png", b"no image", "cannot be read as an image"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as an image"),
        ("cut.png", "cut", "cannot be read as an image"),
        ("large.png", (8_000, 8_000), "the image has 64,000,000 pixels, at most 40,000,000 are read: make it smaller"),
        ("larger.png", (20_000, 20_000), "the image has over 40,000,000 pixels: make it smaller"),
    ],
)
def test_uploads_are_refused_without_naming_files_of_the_server(name, content, problem, tmp_path, upload):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "cut":
        path.write_bytes(open(upload, "rb").read()[:900])  # noqa: SIM115
    elif content:
        Image.new("1", content).save(path)
    with pytest.raises(RequestError, match=problem) as refused:
        answers.read_upload(path)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [("", "there are no labels"), ("\n".join(map(str, range(1001))), "there are 1,001 labels, at most 1,000")],
)
def test_labels_are_counted(clip, upload, labels, problem):
    with pytest.raises(RequestError, match=problem):
        label_scores(clip.model, clip.processor, upload, labels, "", 5)
    with pytest.raises(RequestError, match="there is no image: upload one"):
        label_scores(clip.model, clip.processor, None, "a cat", "", 5)


def test_the_command_names_what_to_install(repositories, capsys, monkeypatch):
    monkeypatch.setattr("hf_clip.utils.packages.find_spec", lambda name: None)
    assert run("app", "--model", repositories["tiny ViT"]) == 1
    assert (
        'the app needs gradio: pip install "hf_clip[app] @ git+https://github.com/hf-clip/hf_clip"'
        in capsys.readouterr().err
    )


def test_find_gives_the_index_s_images(clip, tmp_path, upload):
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(6):
        random_image("RGB", 40, 30 + seed, np.random.default_rng(seed)).save(photos / f"{seed}.png")
    embeddings = tmp_path / "out.safetensors"
    assert run("embed", photos, "--output", embeddings, "--model", clip.folder) == 0
    index = ImageIndex.build(embeddings, tmp_path / "index", clip.model, clip.processor, folder=photos)
    (photos / "5.png").unlink()
    found = answers.find(index, upload, "a cat\n\na dog\n", 6, with_image=True)
    expected = index.search(["a cat", "a dog"], image=[answers.read_upload(upload)], k=6)
    assert [caption for _, caption in found] == [f"{hit['score']:.3f} {hit['path']}" for hit in expected]
    for thumbnail, caption in found:
        assert (thumbnail.size == (256, 256)) == caption.endswith("5.png")
    with pytest.raises(RequestError, match="the query is empty"):
        answers.find(index, None, " ", 3)
    assert len(answers.find(index, None, "a cat", 2)) == 2


def test_only_files_of_the_upload_folder_are_read(tmp_path, upload):
    uploads, outside = tmp_path / "uploads", tmp_path / "outside.png"
    uploads.mkdir()
    Image.new("RGB", (9, 9)).save(outside)
    Image.new("RGB", (9, 9)).save(uploads / "mine.png")
    assert answers.check_upload(uploads / "mine.png", uploads) == str(uploads / "mine.png")
    (uploads / "link.png").symlink_to(outside)
    os.mkfifo(uploads / "pipe.png")
    beside = tmp_path / "uploads-of-others"
    beside.mkdir()
    Image.new("RGB", (9, 9)).save(beside / "x.png")
    for path in (
        outside, uploads / "../outside.png", uploads / "link.png", uploads / "pipe.png", uploads, beside / "x.png",
        uploads / "gone.png", "", "/dev/zero", "a\0b", "https://example.com/a.png", "~/a.png",
    ):  # fmt: skip
        with pytest.raises(RequestError, match="the image is not an upload: upload it again"):
            answers.check_upload(path, uploads)
    with pytest.raises(RequestError, match="the image is not an upload"):
        answers.read_upload(uploads / "pipe.png")


def progressive(scans: int) -> bytes:
    """Save a progressive JPEG and repeat its last scan."""
    buffer = BytesIO()
    Image.effect_noise((256, 256), 50).convert("RGB").save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(START_OF_SCAN)
    return content[:last] + content[last:-2] * scans + content[-2:]


def test_a_jpeg_of_very_many_scans_is_refused_at_once(tmp_path):
    (tmp_path / "few.jpg").write_bytes(progressive(1))
    assert answers.read_upload(tmp_path / "few.jpg").size == (256, 256)
    (tmp_path / "many.jpg").write_bytes(progressive(1000))
    with pytest.raises(RequestError, match=r"the JPEG has 1,0\d\d scans, at most 200 are read: save it again"):
        answers.read_upload(tmp_path / "many.jpg")


def test_a_phone_photo_is_turned_upright(tmp_path):
    image = random_image("RGB", 40, 30, np.random.default_rng(0))
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = 6
    image.save(tmp_path / "phone.png", exif=exif)
    upright = answers.read_upload(tmp_path / "phone.png")
    assert upright.size == (30, 40)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))
    assert np.array_equal(answers.read_upload(tmp_path / "phone.png", "ignore"), image)


@pytest.mark.parametrize("learned", ["ignore", "apply", None])
def test_a_decision_reads_a_photo_as_its_classifier_learned(learned, any_clip, tmp_path):
    """And as the page says where no image took part."""
    upright, exif = random_image("RGB", 70, 40, np.random.default_rng(0)), Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    classifier = hf_clip.ZeroShotClassifier(any_clip.model, any_clip.processor, ["a cat", "a dog"])
    classifier.head = replace(classifier.head, exif=learned)
    decided = {name: answers.decide_upload(classifier, tmp_path / name, 2) for name in ("phone.png", "upright.png")}
    assert (decided["phone.png"][0] == decided["upright.png"][0]) is (learned != "ignore")
    assert ("1 of 1 images carry a rotation" in decided["phone.png"][1]) is (learned == "ignore")


@pytest.mark.parametrize(
    ("labels", "templates", "problem"),
    [
        ("a", "{:>900000000}", "needs {} for the label, and no other braces"),
        ("a", "{0.__class__} {}", "needs {} for the label, and no other braces"),
        ("a", "none", "needs {} for the label"),
        ("a", "{} {", "no other braces"),
        (
            "\n".join(map(str, range(1000))),
            "\n".join(f"{i} {{}}" for i in range(100)),
            "are 100,000 prompts, at most 4,000",
        ),
        ("a", "\n".join(f"{i} {{}}" for i in range(101)), "there are 101 templates, at most 100"),
        ("x" * 100_001, "", "the labels have 100,001 characters, at most 100,000"),
        ("a", "{}" * 50_001, "the templates have 100,002 characters"),
    ],
)
def test_small_requests_have_bounded_costs(clip, upload, labels, templates, problem):
    with pytest.raises(RequestError, match=problem):
        label_scores(clip.model, clip.processor, upload, labels, templates, 5)


@pytest.mark.parametrize("content", ["", "\n", "name", "a:b\nc"])
def test_a_file_of_users_has_names_and_passwords(content, tmp_path):
    (tmp_path / "users").write_text(content)
    with pytest.raises(CommandError, match="write NAME:PASSWORD"):
        read_users(tmp_path / "users")
    (tmp_path / "users").write_text("ann:a:b\n\nbob:c\n")
    assert read_users(tmp_path / "users") == [("ann", "a:b"), ("bob", "c")]
