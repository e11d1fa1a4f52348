"""clip_benchmark's own command, with `--model_type hf_clip` added: `python -m hf_clip.evaluation.clip_benchmark`.

`--pretrained` is a converted folder, one of the nine names, or an original file. Give `--no_amp` for exact numbers.
"""

from collections.abc import Sequence
from typing import Any

from ..utils.packages import MissingPackageError


def load_for_clip_benchmark(
    model_name: str, pretrained: str, cache_dir: str | None = None, device: str = "cpu"
) -> tuple[Any, Any, Any]:
    """Load a model, its transform and its tokenizer for clip_benchmark; long texts are cut."""
    from ..openai import clip

    model, transform = clip.load(pretrained, device=device, download_root=cache_dir)
    return model, transform, lambda texts: clip.tokenize(texts, truncate=True)


def topk_accuracy(output: Any, target: Any, topk: Sequence[int] = (1,)) -> list[float]:
    """Compute top-k accuracy; clip_benchmark's own function fails with NumPy 2.4."""
    found = output.topk(max(topk), 1).indices == target[:, None]
    return [found[:, :k].any(1).double().mean().item() for k in topk]


def run_clip_benchmark() -> None:
    """Run clip_benchmark's command."""
    try:
        import clip_benchmark.models as models

        models.TYPE2FUNC["hf_clip"] = load_for_clip_benchmark
        models.MODEL_TYPES.append("hf_clip")  # before the command line reads its choices
        from clip_benchmark import cli
        from clip_benchmark.metrics import zeroshot_classification
    except ImportError as error:
        message = f"clip_benchmark cannot be imported ({error}): pip install clip-benchmark requests"
        raise MissingPackageError(message, name=error.name) from error
    zeroshot_classification.accuracy = topk_accuracy
    cli.main()


if __name__ == "__main__":
    run_clip_benchmark()
