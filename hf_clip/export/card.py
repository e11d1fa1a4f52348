"""The model card of an exported folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..exported.manifest import Manifest
from ..openai.published import hub_relation, inherited_license, model_title

LIBRARIES = {"transformers.js": "transformers.js"}  # of the others the Hub knows the format alone
EXPORT_CARD = """---
library_name: {library}
pipeline_tag: zero-shot-image-classification
{license}{known}tags:
- clip
- hf_clip
- {runtime}
---

# {name}

{title}, exported for {target} by [hf_clip](https://github.com/hf-clip/hf_clip) and measured against the model:

| file | part | precision | bytes | smallest cosine |
|---|---|---|---|---|
{rows}

```python
from hf_clip import load_clip

model, processor = load_clip("{name}")
```

`hf-clip verify {name}` measures the files again.

{terms}
"""


def write_export_card(directory: Path, name: str, manifest: Manifest, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write README.md into `directory`.

    Args:
        directory: The exported folder.
        name: The title.
        manifest: The folder's.
        files: For each graph its part, precision, bytes and smallest cosine.
    """
    target = "OpenVINO" if manifest.runtime == "openvino" else manifest.target
    rows = (
        f"| {file} | {row['part']} | {row['precision']} | {row['bytes']:,} | {row['cosine_min']:.6f} |"
        for file, row in files.items()
    )
    license_fields, terms = inherited_license(manifest.source)
    text = EXPORT_CARD.format(
        library=LIBRARIES.get(target, manifest.runtime),
        license=license_fields,
        known=hub_relation([manifest.source], "quantized"),
        runtime=manifest.runtime,
        name=name,
        title=model_title(manifest.source),
        target=target,
        rows="\n".join(rows),
        terms=terms,
    )
    (directory / "README.md").write_text(text, encoding="utf-8")


__all__ = ["write_export_card"]
