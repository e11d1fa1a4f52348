import hashlib
import json

import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from hf_clip.evaluation.prompt_sets import IDS, OTHER_NAMES, PACKAGED, _packaged, names_for, prompts

SHA256 = "4a6bac47e8ad144873a6117bde46eb13bfe32167b50784047ac91a920b025244"
COUNTS = {
    "imagenet1k": (1000, 80),
    "caltech101": (102, 34),
    "cars": (196, 8),
    "country211": (211, 5),
    "gtsrb": (43, 3),
    "sun397": (397, 2),
}
MARKDOWN = """# Prompts
## Faces
```bash
classes = [
    ['happy', 'smiling'],
    "it's sad",
]

templates = [
    'a {} face.',
]
```

## Birds
```bash
classes = [
    'Acorn Woodpecker',
]

templates = [
    'a {}, a type of bird.',
]
```
"""


def test_packaged_prompts_are_pinned():
    assert hashlib.sha256(PACKAGED.read_bytes()).hexdigest() == SHA256
    assert {name: tuple(map(len, prompts(name))) for name in COUNTS} == COUNTS
    assert len(_packaged()) == 32
    for name, (_, templates) in _packaged().items():
        assert all(template.format("x") != template for template in templates), name
        assert all(template.count("{}") == 1 for template in templates), name


def test_imagenet_is_that_of_open_clip():
    labels, templates = prompts("imagenet1k")
    assert labels == list(IMAGENET_CLASSNAMES)
    assert templates == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    assert prompts("vtab/dtd") == prompts("dtd")
    for theirs, other in OTHER_NAMES.items():
        assert prompts(theirs) == prompts(other)
    assert prompts("imagenet-a") == ([], templates)  # 200 classes, which come with the data


CIFAR10 = prompts("cifar10").labels
WORDNET_IDS = json.loads(IDS.read_text())


@pytest.mark.parametrize(
    ("own", "name", "expected"),
    [
        (CIFAR10[::-1], "cifar10", CIFAR10[::-1]),
        ([name.title() for name in CIFAR10], "cifar10", CIFAR10),
        ([str(index) for index in range(10)], "cifar10", CIFAR10),
        (CIFAR10[1:], "cifar10", None),
        (list("abcdefghij"), "cifar10", None),
        ([name.replace(" ", "_") for name in prompts("cifar100").labels], "cifar100", prompts("cifar100").labels),
        (prompts("imagenet1k").labels, "imagenet1k", prompts("imagenet1k").labels),  # it has "missile" twice
        (WORDNET_IDS, "imagenet1k", prompts("imagenet1k").labels),
        (["n02102040", "n01440764"], "imagenet1k", ["English Springer Spaniel", "tench"]),  # part of it: imagenette
        (["n01440764"], "imagenet-r", ["tench"]),
        ([str(index) for index in range(100)], "cifar100", prompts("cifar100").labels),
        ([str(index) for index in range(1, 103)], "flowers", prompts("flowers").labels),
        (["2", "10"], "renderedsst2", "numbers, renderedsst2 has 2 classes"),
        (["0", "1"], "cifar10", "are 2 numbers, cifar10 has 10 classes"),
        ([f"n{index:08}" for index in range(1000)], "imagenet1k", "do not include n00000000"),
        (["n01440764"], "cifar10", "WordNet ids, those of cifar10 are names"),
        (["a", "b"], "dsprites_label_orientation", None),
    ],
)
def test_names_go_where_the_data_have_them(own, name, expected):
    if isinstance(expected, str):  # which name is whose cannot be told
        with pytest.raises(ValueError, match=expected):
            names_for(own, name)
    else:
        assert names_for(own, name) == expected


def test_names_that_match_in_part_are_refused():
    for own in (["plane", *CIFAR10[1:]], [CIFAR10[1], *CIFAR10[1:]]):
        with pytest.raises(ValueError, match=f"the classes of the data are not those of cifar10, {own[0]}"):
            names_for(own, "cifar10")


def test_the_markdown_of_openai_is_read(tmp_path):
    file = tmp_path / "prompts.md"
    file.write_text(MARKDOWN)
    assert prompts("Faces", file) == ([["happy", "smiling"], "it's sad"], ["a {} face."])
    assert prompts("Birds", file).labels == ["Acorn Woodpecker"]


def test_bad_input_is_refused_by_name(tmp_path):
    (tmp_path / "prompts.md").write_text(MARKDOWN)
    with pytest.raises(ValueError, match=r"prompts.md has no prompts for 'Fish': choose from Birds, Faces"):
        prompts("Fish", tmp_path / "prompts.md")
    with pytest.raises(ValueError, match="there are no prompts for 'birdsnap': read them from OpenAI's"):
        prompts("birdsnap")
    for text, message in (("hello", "no headings"), ("## A\nclasses = [\n]\n", "no lists `classes`")):
        (tmp_path / "x.md").write_text(text)
        with pytest.raises(ValueError, match=message):
            prompts("A", tmp_path / "x.md")
