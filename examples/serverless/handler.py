"""Label an image in a function such as AWS Lambda's: an exported CLIP, and neither torch nor transformers."""

import base64
import json
import os
from functools import lru_cache
from typing import Any

from hf_clip import ImageRef, ZeroShotClassifier
from hf_clip.exported import load_exported

# at import, so that one start serves many calls
CLIP = load_exported(os.environ.get("CLIP_FOLDER", "clip-onnx"))
MAX_LABELS = 100


@lru_cache(maxsize=16)
def classifier_of(labels: tuple[str, ...]) -> ZeroShotClassifier:
    """Embed labels, once for all calls that have the same ones."""
    return ZeroShotClassifier(*CLIP, labels)


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answer a POST of an image, its labels in `?labels=a cat,a dog`, as API Gateway and function URLs pass it on."""
    try:
        asked = (event.get("queryStringParameters") or {}).get("labels", "")
        labels = tuple(label for label in map(str.strip, asked.split(",")[:MAX_LABELS]) if label)
        image = base64.b64decode(event.get("body") or "", validate=True)
        [scores] = classifier_of(labels)(ImageRef.of(image, "the image"))
    except ValueError as error:  # one sentence about the request
        return {"statusCode": 400, "body": json.dumps({"error": str(error)})}
    return {"statusCode": 200, "body": json.dumps(scores)}
