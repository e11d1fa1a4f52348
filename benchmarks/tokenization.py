"""Tokenizing beside the original `clip.tokenize`, transformers' CLIPTokenizer and open_clip.

All peers make `(n, 77)` int64 tensors. "Cold" is a tokenizer's first pass over the texts, with empty word caches;
"warm" is any later pass.
"""

import itertools
import random
import statistics
from collections.abc import Callable

import clip
import open_clip
import torch
from tqdm import tqdm
from transformers import CLIPTokenizer

from hf_clip.model.tokenization_hf_clip import HFCLIPTokenizer
from hf_clip.openai.vocabulary import load_vocabulary

from .common import ORIGINAL, Row, rows_of, timed

TEXTS = 10_000
TEMPLATES = (
    "a photo of a {}.",
    "a bad photo of the {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a cropped photo of the {}.",
    "a tattoo of the {}.",
    "a close-up photo of a {}.",
)
LANGUAGES = {
    "de": ("ein Foto von einem {}", "größer {}", "Hund Schlüssel Vögel Brücke Mädchen Straße Käse Tür Stühle Gemüse"),
    "fr": ("une photo d’un {}", "{} très âgé", "chien forêt élève château garçon café hôtel œuf gâteau théâtre"),
    "es": ("una foto de un {}", "{} pequeño", "niño montaña corazón jardín ratón café león camión árbol avión"),
    "pl": ("zdjęcie {}", "mały {}", "pies żółw łódź książka świnia dąb ząb źrebię gęś ćma"),
    "tr": ("bir {} fotoğrafı", "küçük {}", "köpek çiçek ağaç şehir güneş öğrenci gökyüzü İstanbul ışık kuş"),
    "vi": ("một bức ảnh của {}", "{} nhỏ", "chó mèo cây nhà sông núi biển đường trường người"),
    "ru": ("фотография {}", "большая {}", "собака кошка дерево город река гора море дорога школа человек"),
    "el": ("φωτογραφία {}", "μικρός {}", "σκύλος γάτα δέντρο πόλη ποτάμι βουνό θάλασσα δρόμος σχολείο άνθρωπος"),
    "ar": ("صورة {}", "{} كبير", "كلب قطة شجرة مدينة نهر جبل بحر طريق مدرسة إنسان"),
    "he": ("תמונה של {}", "{} גדול", "כלב חתול עץ עיר נהר הר ים דרך ספר אדם"),
    "hi": ("{} की तस्वीर", "बड़ा {}", "कुत्ता बिल्ली पेड़ शहर नदी पहाड़ समुद्र सड़क स्कूल आदमी"),
    "th": ("ภาพถ่ายของ{}", "{}ตัวเล็ก", "สุนัข แมว ต้นไม้ เมือง แม่น้ำ ภูเขา ทะเล ถนน โรงเรียน คน"),
    "zh": ("一张{}的照片", "大的{}", "狗 猫 树 城市 河 山 海 路 学校 人"),
    "ja": ("{}の写真", "小さい{}", "犬 猫 木 街 川 山 海 道 学校 人"),
    "ko": ("{} 사진", "작은 {}", "개 고양이 나무 도시 강 산 바다 길 학교 사람"),
}


def english_words() -> list[str]:
    """The whole ASCII words of the vocabulary, from the most frequent on."""
    vocab, _ = load_vocabulary()
    words = (token.removesuffix("</w>") for token in vocab if token.endswith("</w>"))
    return [word for word in words if len(word) > 2 and word.isascii() and word.isalpha()]


def template_prompts(count: int) -> list[str]:
    """Zero-shot prompts: ten templates by as many class names of one to three words as it takes."""
    rng, words = random.Random(0), english_words()
    names = [
        " ".join(rng.choices(words[:5000], k=rng.choice((1, 1, 2, 3)))) for _ in range(-(-count // len(TEMPLATES)))
    ]
    return [template.format(name) for name in names for template in TEMPLATES][:count]


def captions(count: int) -> list[str]:
    """Captions of 6 to 20 words of the whole vocabulary, as frequent as their rank makes them (Zipf's law)."""
    rng, words = random.Random(1), english_words()
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    drawn = (rng.choices(words, cum_weights=weights, k=rng.randint(6, 20)) for _ in range(count))
    return [" ".join(words).capitalize() + rng.choice((".", "!", "?", "")) for words in drawn]


def language_prompts(count: int) -> list[str]:
    """Prompts in fifteen languages other than English."""
    rng, languages = random.Random(2), list(LANGUAGES.values())
    prompts = []
    for i in range(count):
        template, phrase, nouns = languages[i % len(languages)]
        prompts.append(f"{template.format(phrase.format(rng.choice(nouns.split())))}, {rng.randrange(1000)}")
    return prompts


CORPORA = {"template prompts": template_prompts, "captions": captions, "15 languages": language_prompts}


def ours() -> Callable[[list[str]], torch.Tensor]:
    vocab, merges = load_vocabulary()
    tokenizer = HFCLIPTokenizer(vocab=vocab, merges=merges)
    return lambda texts: tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def original() -> Callable[[list[str]], torch.Tensor]:
    clip.clip._tokenizer = clip.simple_tokenizer.SimpleTokenizer()
    return lambda texts: clip.tokenize(texts, truncate=True)


def _without_padding(ids: torch.Tensor) -> torch.Tensor:
    """The ids up to the first EOT, and zeros, whatever the row was padded with."""
    eot = ids == ids.max()
    return ids * (eot.cumsum(dim=1) - eot.long() == 0)


def stock() -> Callable[[list[str]], torch.Tensor]:
    vocab, merges = load_vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    return lambda texts: tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def open_clip_tokenizer() -> Callable[[list[str]], torch.Tensor]:
    return open_clip.tokenizer.SimpleTokenizer()


PEERS = {ORIGINAL: original, "open_clip": open_clip_tokenizer, "transformers": stock, "hf_clip": ours}


def measure(rounds: int, count: int = TEXTS) -> list[Row]:
    """Every peer on `count` texts of each corpus, cold and warm. Noted: the share of texts with equal ids."""
    rows = []
    with tqdm(total=len(CORPORA) * rounds * len(PEERS), desc="tokenization", leave=False) as progress:
        for corpus, make in CORPORA.items():
            texts = make(count)
            times = {state: {peer: [] for peer in PEERS} for state in ("cold", "warm")}
            ids = {}
            for _ in range(rounds):
                for peer, build in PEERS.items():
                    tokenize = build()
                    times["cold"][peer].append(timed(tokenize, texts))
                    times["warm"][peer].append(timed(tokenize, texts))
                    ids[peer] = _without_padding(tokenize(texts))
                    progress.update()
            equal = {peer: (ids[peer] == ids[ORIGINAL]).all(1).double().mean().item() for peer in PEERS}
            notes = {peer: f"{share:.1%} equal ids" for peer, share in equal.items()}
            for state, measured in times.items():
                medians = {peer: statistics.median(values) for peer, values in measured.items()}
                rows += rows_of("tokenization", f"{corpus}, {state}", medians, count, notes=notes)
    return rows
