"""tokenizer.json of an exported folder cleans texts as the original does, as far as rules can."""

import pytest
from tokenizers import Tokenizer

from hf_clip import HFCLIPProcessor
from hf_clip.export.targets import TARGETS, write_settings
from hf_clip.model.configuration_hf_clip import HFCLIPConfig


@pytest.fixture(scope="module")
def tokenizers(repositories, tmp_path_factory):
    """Ours, and that of other programs, which read the file."""
    folder, repository = tmp_path_factory.mktemp("exported"), repositories["tiny ViT"]
    processor = HFCLIPProcessor.from_pretrained(repository)
    write_settings(folder, TARGETS["transformers.js"], HFCLIPConfig.from_pretrained(repository), processor)
    return processor.tokenizer, Tokenizer.from_file(str(folder / "tokenizer.json"))


ODD = [
    *("a photo of a cat", "can\u2019t", "\u201ca dog\u201d \u2018q\u2019", "\ufb01sh \ufb02y o\ufb03ce"),
    *("\uff21\uff22\uff23\u3000\uff11\uff12", "a &amp; b", "&lt;b&gt;", "it&#39;s it&#x27;s", "&eacute;t\u00e9"),
    *("A  B\tC\r\nD", "x\x00y\x7fz", "&quot;a&quot;", "&amp;lt;", "l\u2019\u00e9t\u00e9", "\ufeffa", "\u00bd \u2122"),
    *("na\u0131\u0308ve \ud55c\uae00", "a\u2028b", "\uff8a\uff9d\uff76\uff78"),
]


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_have_the_original_s_ids(tokenizers, text):
    ours, theirs = tokenizers
    assert theirs.encode(text).ids == ours(text).input_ids


@pytest.mark.parametrize("text", ["voil\u00c3\xa0", "\x1b[36mblue\x1b[0m", "\u03a3\u0391\u03a3"])
def test_what_rules_cannot_clean_is_known(tokenizers, text):
    """docs/export.md names these: mojibake, terminal escapes, a capital sigma at the end of a word."""
    ours, theirs = tokenizers
    assert theirs.encode(text).ids != ours(text).input_ids
