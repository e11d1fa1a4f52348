"""Record fixed images and texts with the original's digests and ids, and digests of the nine checkpoints' weights."""

import hashlib
import json
import math
from pathlib import Path

import clip
import numpy as np
import PIL
from clip.clip import _transform
from PIL import Image, ImageDraw

from hf_clip.openai.download import cached_file
from hf_clip.openai.original import read_original
from hf_clip.openai.published import CHECKPOINTS
from hf_clip.openai.weights import RECORDED_WEIGHTS, recorded_digests, values_digest

PARITY = Path(__file__).parents[1] / "hf_clip" / "parity" / "data"
EOT = 49407
SIZES = (32, 64, 224, 288, 336, 384, 448)
# resized to any of the sizes, these leave an odd margin whose half the original rounds up and stock rounds down
WAVES_SIZE, SHAPES_SIZE = (141, 113), (1001, 668)

TEXTS = [
    "Hello World!",
    "a diagram",
    "a photo of a cat",
    "",
    "a photo of the small DOG, it's running & the boy's laughing!",
    "two “curly” quotes, it’s ‘fine’",
    "fish &amp;amp; chips &lt;3 &amp;eacute;t&amp;eacute;",
    "the ﬁrst ﬂight, eﬃcient",
    "sÃ³ lo naÃ¯ve â€œquotedâ€\x9d â€” cafÃ©",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☕️ 1️⃣ 🇩🇪",
    "ΟΔΥΣΣΕΥΣ ΣΑΣ Σ",
    "人人生而自由，在尊严和权利上一律平等。",
    "tab\there \r\n  runs   of\u00a0\u3000spaces  ",
    "very " * 100 + "long",
    "supercalifragilisticexpialidocious" * 9,
    "1999 3.14159 0x1F 1,000,000",
    "I'm they've we'll he'd can't you're it's I'M WE'LL",
    "<|startoftext|> in the text <|endoftext|> and behind",
    "İSTANBUL, Iğdır, ışık",
    "STRASSE Straße ẞ",
    "すべての人間は、ﾊﾝｶｸ、㍿、①②③",
    "모든 인간은 태어날 때부터 자유로우며",
    "ﻣﺮﺣﺒﺎ يولد جميع الناس أحراراً",
    "सभी मनुष्यों को गौरव",
    "e\u0301 é \u1ea1\u0302 Å K Ω",
    "zero\u200bwidth soft\u00adhyphen \ufeffBOM",
    "& &amp &amp; &; &#39; &#x2019; &nbsp;",
    "<b>&amp;lt;i&amp;gt; &amp;amp;eacute; &lt;</b>",
    "¯\\_(ツ)_/¯ (╯°□°)╯︵ ┻━┻",
    "½ ² ™ © № ㎏ Ⅳ",
    "don''t ''s 's's ' s",
    "C:\\Users\\naïve\\file.TXT https://example.com/?q=1&lang=en&copy=2",
    "\x1b[36;44mblue\x1b[0m \x00\x07",
    "   ",
    "!!! ??? ... --- ___ ***",
    "ＡＢＣ １２３ ｆｕｌｌ ｗｉｄｔｈ",
    "voilÃ le travail Ã la mode âœ” No problems",
    "snake_case camelCase kebab-case",
    "Ёлка Їжак люди рождаются свободными",
    "a photo of a cat</w>",
]


def waves(size: tuple[int, int], bands: int, period: float) -> np.ndarray:
    """Draw waves in a different direction for each band (height, width, bands); 32 levels keep files small."""
    x, y = np.meshgrid(*map(np.arange, size))
    angles = [0.4 + 1.1 * band for band in range(bands)]
    phases = [(x * math.cos(angle) + y * math.sin(angle)) / period + (x * y) / 4000 for angle in angles]
    return np.stack([(np.sin(phase) * 15.5 + 16).astype(np.uint8) * 8 for phase in phases], axis=-1)


def shapes(size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, (235, 228, 210))
    draw = ImageDraw.Draw(image)
    width, height = size
    for index in range(24):
        color = tuple((index * step + 40) % 256 for step in (37, 91, 53))
        left, top = index * 173 % width, index * 97 % height
        box = (left, top, left + 30 + index * 9, top + 20 + index * 7)
        (draw.ellipse, draw.rectangle)[index % 2](box, fill=color, outline=(0, 0, 0), width=1 + index % 3)
        draw.line((left, 0, width - left, height), fill=color[::-1], width=1)
    return image


def images() -> dict[str, tuple[Image.Image, dict]]:
    """Make each image, by file name, with the options to save it with."""
    rgb = Image.fromarray(waves(WAVES_SIZE, 3, 6))
    rgba, grey_alpha = waves((150, 101), 4, 8), waves((90, 131), 2, 5)
    alphas = bytes(range(0, 256, 4))
    return {
        "rgb.png": (rgb, {}),
        "rgb_large.png": (shapes(SHAPES_SIZE), {}),
        "rgba.png": (Image.fromarray(rgba), {}),
        "palette.png": (shapes((320, 211)).quantize(64), {}),
        "palette_alphas.png": (shapes((211, 320)).quantize(64), {"transparency": alphas}),
        # here Pillow 13 resizes in another order than those before it
        "rgb_tall.png": (shapes((480, 1000)), {}),
        "rgb_sliver.png": (Image.fromarray(waves((40, 7), 3, 3)), {}),
        "grey.png": (Image.fromarray(waves((127, 86), 1, 7)[..., 0]), {}),
        "grey_alpha.png": (Image.fromarray(grey_alpha), {}),
        "grey_16_bit.png": (Image.fromarray(waves((113, 75), 1, 11)[..., 0].astype(np.uint16) * 257), {}),
        "bilevel.png": (Image.fromarray(waves((143, 200), 1, 4)[..., 0]).convert("1"), {}),
        "cmyk.tif": (Image.fromarray(waves((75, 64), 4, 10), "CMYK"), {"compression": "tiff_lzw"}),
    }


def record_images() -> None:
    """Draw missing images, and add the digests under this Pillow to `pixels.json`."""
    folder, file = PARITY / "images", PARITY / "pixels.json"
    for name, (image, options) in images().items():
        if not (folder / name).exists():
            image.save(folder / name, **options)
    digests = json.loads(file.read_text()) if file.exists() else {}
    for size in SIZES:
        for path in sorted(folder.iterdir()):
            with Image.open(path) as image:
                pixels = _transform(size)(image).numpy()
            of_image = digests.setdefault(str(size), {}).setdefault(path.name, {})
            of_image[PIL.__version__] = hashlib.sha256(pixels.tobytes()).hexdigest()
    file.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


def record_texts() -> None:
    """Write the original's token ids, cut to its 77 columns, without padding after the end of the text."""
    rows = []
    for text, ids in zip(TEXTS, clip.tokenize(TEXTS, truncate=True).tolist(), strict=True):
        length = max(column for column, id in enumerate(ids) if id == EOT) + 1
        rows.append({"text": text, "ids": ids[:length]})
    lines = ",\n".join(f" {json.dumps(row)}" for row in rows)
    (PARITY / "texts.json").write_text(f"[\n{lines}\n]\n")


def record_weights(cache_dir: Path | None = None) -> list[str]:
    """Add the digests of the published checkpoints that the cache holds, and return the names of these."""
    digests = recorded_digests()
    found = [name for name, row in CHECKPOINTS.items() if cached_file(row, cache_dir).is_file()]
    for name in found:
        digests[name] = values_digest(read_original(name, cache_dir).state_dict)
    RECORDED_WEIGHTS.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    return found


def record(cache_dir: Path | None = None) -> str:
    """Record images, texts and cached checkpoints, and return a sentence that names Pillow and the checkpoints."""
    record_images()
    record_texts()
    names = record_weights(cache_dir)
    return f"recorded with Pillow {PIL.__version__}, and the weights of {', '.join(names) or 'no checkpoint'}"
