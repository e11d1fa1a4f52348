"""Images of every mode, size and file format, for comparing one transform with another."""

import struct
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, features

RESOLUTIONS = (224, 288, 336, 384, 448)
MODES = (
    "1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV",
    "I", "F", "I;16", "I;16L", "I;16B", "I;16N",
)  # fmt: skip
UNSUPPORTED_MODES = ("La",)  # Pillow can't convert it to RGB
FEW_SIZES = ((1, 1), (1, 2), (3, 1), (224, 224), (224, 225), (226, 224), (320, 291), (97, 130), (40, 7))
EXIF_ORIENTATION = 0x0112


def random_image(mode: str, width: int, height: int, generator: np.random.Generator) -> Image.Image:
    """Large and small structures in every band; a palette of random colors; "F" and "I" around and beyond 0..255."""
    grid = generator.integers(2, 12, 2)
    bands = []
    for _ in Image.new(mode, (1, 1)).getbands():
        coarse = Image.fromarray(generator.integers(0, 256, grid, dtype=np.uint8)).resize((width, height))
        noise = generator.integers(-40, 41, (height, width))
        bands.append(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))
    if mode == "1":
        return Image.fromarray(bands[0]).convert("1")
    if mode == "F":
        return Image.fromarray(bands[0].astype(np.float32) * 1.3 - 20.5)
    if mode == "I":
        return Image.fromarray(bands[0].astype(np.int32) * 2 - 60)
    if mode.startswith("I;16"):
        wide = bands[0].astype(np.uint16) * generator.choice([1, 2, 257])
        return Image.frombytes(mode, (width, height), wide.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    image = Image.frombytes(mode, (width, height), np.stack(bands, axis=-1).tobytes())
    if mode in ("P", "PA"):
        image.putpalette(generator.integers(0, 256, 768, dtype=np.uint8).tobytes())
    if mode == "P" and generator.random() < 0.5:
        image.info["transparency"] = int(generator.integers(256))
    return image


def random_size(generator: np.random.Generator) -> tuple[int, int]:
    """Mostly ordinary, sometimes a sliver or a few pixels."""
    kind = generator.random()
    if kind < 0.1:
        return tuple(int(side) for side in generator.integers(1, 5, 2))
    short = int(generator.integers(2, 640))
    long = min(int(short * generator.uniform(1, 20 if kind < 0.2 else 3)), 2000)
    return (short, long) if generator.random() < 0.5 else (long, short)


def margin_sizes(resolution: int) -> list[tuple[int, int]]:
    """Sizes that leave every margin 0..8 after resizing, in both directions, from smaller, equal and larger images."""
    return [
        size
        for short in (resolution // 2, resolution, resolution * 2)
        for margin in range(9)
        for long in [-(-short * (resolution + margin) // resolution)]
        for size in [(short, long), (long, short)]
    ]


def photo_files() -> list[Path]:
    """The photos and graphics that ship in the wheels of scikit-image and scikit-learn."""
    folders = [
        Path(find_spec(package).origin).parent / folder
        for package, folder in (("skimage", "data"), ("sklearn", "datasets/images"))
    ]
    return sorted(file for folder in folders for file in folder.iterdir() if file.suffix in (".png", ".jpg", ".gif"))


def _png(image: np.ndarray, color_type: int, bit_depth: int, interlaced: bool) -> bytes:
    """Pillow writes neither interlaced PNGs nor 16-bit color."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = image.shape[:2]
    adam7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b""
    for left, top, across, down in adam7 if interlaced else ((0, 0, 1, 1),):
        part = image[top::down, left::across]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)  # filter type 0
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_files(folder: Path, seed: int = 0) -> Iterator[Path]:
    """Files in the formats and flavors one meets, in `folder`."""
    generator = np.random.default_rng(seed)

    def image(mode: str) -> Image.Image:
        return random_image(mode, *(int(side) for side in generator.integers(60, 400, 2)), generator)

    saved = [
        ("baseline.jpg", image("RGB"), {"quality": 80}),
        ("progressive.jpg", image("RGB"), {"progressive": True, "subsampling": 0}),
        ("gray.jpg", image("L"), {}),
        ("cmyk.jpg", image("CMYK"), {}),
        ("rgb.png", image("RGB"), {}),
        ("rgba.png", image("RGBA"), {}),
        ("grey_alpha.png", image("LA"), {}),
        ("bilevel.png", image("1"), {}),
        ("16_bit_grey.png", image("I;16"), {}),
        ("palette.png", image("P"), {}),
        ("palette_one_transparent.png", image("P"), {"transparency": 3}),
        ("palette_alphas.png", image("P"), {"transparency": bytes(range(0, 256, 2))}),
        ("rgb_one_transparent.png", image("RGB"), {"transparency": (10, 20, 30)}),
        ("plain.gif", image("P"), {}),
        ("transparent.gif", image("P"), {"transparency": 7}),
        ("animated.gif", image("RGB"), {"save_all": True, "append_images": [image("RGB")]}),
        ("rgb.tif", image("RGB"), {"compression": "tiff_lzw"}),
        ("cmyk.tif", image("CMYK"), {}),
        ("lab.tif", image("LAB"), {}),
        ("float.tif", image("F"), {}),
        ("16_bit.tif", image("I;16"), {}),
        ("32_bit.tif", image("I"), {}),
        ("bilevel.tif", image("1"), {"compression": "group4"}),
        ("rgb.bmp", image("RGB"), {}),
        ("rgb.ppm", image("RGB"), {}),
    ]
    if features.check("webp"):
        saved += [("lossy.webp", image("RGB"), {"quality": 70}), ("lossless.webp", image("RGBA"), {"lossless": True})]
    if features.check("jpg_2000"):
        saved += [("rgb.jp2", image("RGB"), {})]
    if "avif" in features.modules and features.check("avif"):  # from Pillow 11.3
        saved += [("rgb.avif", image("RGB"), {})]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        saved.append((f"turned_{orientation}.jpg", image("RGB"), {"exif": exif}))
    for name, picture, options in saved:
        picture.save(folder / name, **options)
        yield folder / name

    height, width = (int(side) for side in generator.integers(60, 400, 2))
    for name, channels, color_type, dtype, interlaced in (
        ("interlaced_rgb.png", 3, 2, ">u1", True),
        ("interlaced_rgba.png", 4, 6, ">u1", True),
        ("interlaced_grey.png", 1, 0, ">u1", True),
        ("interlaced_16_bit_grey.png", 1, 0, ">u2", True),
        ("16_bit_rgb.png", 3, 2, ">u2", False),
        ("16_bit_rgba.png", 4, 6, ">u2", False),
    ):
        depth = np.dtype(dtype).itemsize * 8
        pixels = generator.integers(0, 2**depth, (height, width, channels)).astype(dtype)
        (folder / name).write_bytes(_png(pixels, color_type, depth, interlaced))
        yield folder / name
