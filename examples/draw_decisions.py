"""Draw decisions.png, the picture of docs/decide.md: `python -m examples.draw_decisions`."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from hf_clip import ZeroShotClassifier, load_clip
from hf_clip.plots.scores import draw_scores

from .shapes import PAIRS, draw, draw_two
from .train_shapes import CHECKPOINTS

OUTPUT = Path(__file__).parent / "decisions.png"
LABELS = [("red", "circle"), ("blue", "square")]
# of one label, of none, of both
SHOWN = [[("red", "circle")], [("green", "star")], [("yellow", "triangle")], LABELS]
TITLES = {
    "one": 'mode="one": softmax over the two labels',
    "any": 'mode="any": and none of these',
    "each": 'mode="each"',
}
SEED = 3


def main(output: Path = OUTPUT) -> None:
    """Score four pictures in the three modes, with all other pairs of color and shape as the background."""
    model, processor = load_clip(CHECKPOINTS["resnet"])
    rng, names = np.random.default_rng(SEED), [" ".join(pair) for pair in LABELS]
    background = [" ".join(pair) for pair in PAIRS if pair not in LABELS]
    with TemporaryDirectory() as folder:
        files, titles = [], []
        for place, shown in enumerate(SHOWN):
            image = draw(*shown[0], rng, (80, 80)) if len(shown) == 1 else draw_two(*shown, rng, 80)[0]
            files.append(Path(folder) / f"{place}.png")
            titles.append(" and ".join(" ".join(pair) for pair in shown))
            image.save(files[-1])
        answers = {
            title: ZeroShotClassifier(model, processor, names, mode=mode, background=background)(files)
            for mode, title in TITLES.items()
        }
        draw_scores(files, answers, output, truths=titles)
    with Image.open(output) as sheet:
        sheet.convert("P", palette=Image.Palette.ADAPTIVE).save(output, optimize=True)
    print(f"drawn: {output}")
    for title, ranked in answers.items():
        for shown, rows in zip(titles, ranked, strict=True):
            print(f"{title}, {shown}: " + ", ".join(f"{row['label']} {row['score']:.1%}" for row in rows))


if __name__ == "__main__":
    main()
