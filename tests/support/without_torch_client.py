"""Run in a process of its own: whatever an exported folder is for, where torch and transformers cannot be imported.

Arguments: the exported folder, a folder of images, and an empty folder to write into.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

HIDDEN = ("torch", "torchvision", "transformers")
sys.modules.update(dict.fromkeys(HIDDEN))

import numpy as np

import hf_clip
import hf_clip.exported
from hf_clip import ImageEmbedder, ImageIndex, ImagePreprocessor, TextEmbedder, ZeroShotClassifier
from hf_clip.cli.app import main
from hf_clip.embedding.texts import embed_token_ids, token_ids
from hf_clip.utils.packages import MissingPackageError

folder, photos, output = sys.argv[1:4]
if "--fake" in sys.argv:
    from fake_graphs import use_fake_graphs

    use_fake_graphs()


def run(*arguments: str) -> tuple[int, str, str]:
    """Run `hf-clip`; return its exit status, and what it printed."""
    sys.argv = ["hf-clip", *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


def finish(*arguments: str) -> str:
    status, out, err = run(*arguments)
    assert status == 0, (arguments, out, err)
    return out


def refusal(use: Callable[[], object]) -> str:
    """Return the sentence at a door that is closed without torch."""
    try:
        return f"{use()} is open"
    except MissingPackageError as error:
        return str(error)


for name in ("HFCLIPModel", "load_clip", "CLIPTrainer", "export_clip", "where"):
    sentence = refusal(partial(getattr, hf_clip, name))
    assert sentence.startswith(f"hf_clip.{name} needs t"), sentence
    assert ': pip install "hf_clip @ git+' in sentence, sentence

model, processor = hf_clip.exported.load_exported(folder)
paths = sorted(str(path) for path in Path(photos).glob("[!.]*.png") if path.name != "broken.png")
embeds = hf_clip.embed_images(model, processor, paths)
assert embeds.dtype == np.float32
assert len(embeds) == len(paths)
np.save(f"{output}/embeds.npy", embeds)
ready = processor(images=paths)
np.testing.assert_allclose(hf_clip.embed_images(model, processor, ready), embeds, atol=1e-5)
text_embeds = hf_clip.embed_texts(model, processor, ["a", "b c"])
np.testing.assert_allclose(np.linalg.norm(text_embeds, axis=1), 1, atol=1e-6)
ids = token_ids(processor, ["a", "b c"])
np.testing.assert_allclose(embed_token_ids(model, processor, ids), text_embeds, atol=1e-6)
batch = ImageEmbedder(folder, batch_size=2)(ImagePreprocessor(folder)({"image": paths}))
np.testing.assert_allclose(batch["embedding"], embeds, atol=1e-5)
assert np.isfinite(TextEmbedder(folder)({"text": ["a", None]})["text_embedding"][0]).all()

classifier = ZeroShotClassifier(model, processor, ["a cat", "a dog", "two dogs"], ["a {}.", "the {}"])
classifier.save(f"{output}/classes.safetensors")
again = ZeroShotClassifier.load(f"{output}/classes.safetensors", model, processor)
assert again(paths[0]) == classifier(paths[0])
for mode in ("any", "each"):
    [(_, decision)] = ZeroShotClassifier(model, processor, ["a cat"], mode=mode).decisions(paths[:1])
    assert decision.reason
assert "calibrate needs torch" in refusal(lambda: classifier.calibrate(paths, ["a cat"] * len(paths)))
assert abs(sum(answer["score"] for answer in classifier(paths[0])[0]) - 1) < 1e-6

status, out, err = run("classify", photos, "--labels", "a cat,a dog", "--model", folder)
assert status == 0, err
assert f"{paths[0]}: a " in out
assert "skipped: cannot read" in err
finish("embed", photos, "--output", f"{output}/features.safetensors", "--model", folder)
finish("embed", photos, "--output", f"{output}/parts", "--model", folder)
finish("index", f"{output}/features.safetensors", "--output", f"{output}/photos.index", "--model", folder)
assert finish("search", f"{output}/photos.index", "a cat", "-k", "2").count("\n") == 2
assert finish("search", f"{output}/photos.index", "--image", paths[1], "-k", "1").endswith(f"{Path(paths[1]).name}\n")
assert len(ImageIndex.load(f"{output}/photos.index", model, processor)) >= len(paths)
finish("--version")

for arguments, beginning in (
    (["finetune", photos, "--model", folder, "--output", f"{output}/x"], "error: "),
    (["classify", photos, "--labels", "a,b", "--model", photos], f"error: --model {photos} needs t"),
    (["classify", photos, "--labels", "a,b", "--model", folder, "--dtype", "bfloat16"], "error: cannot load"),
    (["classify", photos, "--labels", "a,b", "--model", folder, "--optimize"], "error: cannot load"),
):
    status, out, err = run(*arguments)
    assert status == 1, (arguments, out)
    assert err.startswith(beginning), err
    assert err.count("\n") == 1, err
assert not any(sys.modules.get(name) for name in HIDDEN)
