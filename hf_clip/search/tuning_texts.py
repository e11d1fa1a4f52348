"""Default texts for tuning an HNSW index: 240 queries of the kind that people type into a search box."""

SUBJECTS = (
    "a red car", "two dogs", "a cat on a sofa", "a wedding", "a birthday cake", "children playing football",
    "a mountain lake", "an old man with a hat", "a woman reading a book", "a bowl of soup", "a crowded train station",
    "a sailing boat", "a bridge", "a street market", "a horse in a field", "an airplane", "a laptop on a desk",
    "a map", "a handwritten letter", "a newspaper page", "a blue door", "a yellow flower", "a bird in a tree",
    "snow on a roof", "a beach with palm trees", "a skyscraper", "a kitchen", "a bicycle against a wall",
    "a guitar player", "a chess game", "a bottle of wine", "a portrait of a girl", "a church interior",
    "a sign that says stop", "a diagram", "a screenshot of a phone", "fireworks", "a waterfall", "a tractor",
    "an elephant",
)  # fmt: skip
FRAMES = ("{}", "a photo of {}", "{} at night", "a black and white picture of {}", "a painting of {}", "many of {}")
TUNING_TEXTS = [frame.format(subject) for frame in FRAMES for subject in SUBJECTS]

__all__ = ["TUNING_TEXTS"]
