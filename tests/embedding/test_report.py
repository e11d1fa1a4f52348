"""Reports are added up, and travel between processes."""

from hf_clip.embedding.report import Report


def test_a_report_travels_as_text_and_adds_up():
    part = Report.of(["a.png", "b.png", "c.png"], [None, "cannot read b.png: it is no image", "c.png: it is no image"])
    sent = Report.from_json(part.as_json())
    assert sent == part
    whole = Report(kept=5)
    for _ in range(6):
        whole.add(sent)
    assert (whole.embedded, whole.count) == (6, 23)
    assert whole.errors == {"it is no image": 12}
    names = ", ".join(["b.png", "c.png"] * 5)
    assert whole.skipped() == f"12 of 23 images could not be read ({names} and 2 more); 12 for: it is no image"
