"""A Ray Serve application: `serve run hf_clip.serving.ray:app source=ViT-B/32 max_replicas=4`."""

import os
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve

from ..data.labels import saved_classifier
from .application import create_app
from .service import ServerSettings

# requests that a replica has at a time: enough to fill batches, while others go to further replicas
ONGOING = 64


class RayArguments(BaseModel):
    """Arguments of the application, as `serve run` and its configuration files give them.

    Args:
        source: What `load_clip` takes.
        dtype: The dtype to compute in.
        device: The device of each replica.
        optimize: Optimize the model for inference.
        trust_remote_code: Run code that comes with the repository.
        index: The directory of an index, on every node.
        labels: Labels of /classify, with commas between; or a .safetensors of calibrate or few-shot, on every node.
        max_batch: The most images of a batch.
        max_wait_ms: Milliseconds that a batch waits for company.
        api_key: The key that requests need (default: `$HF_CLIP_API_KEY` of the replicas).
        min_replicas: The least number of replicas.
        max_replicas: The most.
        num_cpus: Cores that a replica reserves.
        num_gpus: GPUs that a replica reserves.
    """

    model_config = ConfigDict(extra="forbid")

    source: str
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    device: str | None = None
    optimize: bool = False
    trust_remote_code: bool = False
    index: str | None = None
    labels: str = ""
    max_batch: int = 32
    max_wait_ms: float = 5.0
    api_key: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = 1
    num_gpus: float = 0


def app(arguments: RayArguments) -> serve.Application:
    """Build the application; each replica loads the model before it takes requests.

    Args:
        arguments: The arguments.

    Returns:
        An application for `serve.run`.
    """

    def build() -> FastAPI:
        return replica_app(arguments)

    autoscaling = {
        "min_replicas": arguments.min_replicas,
        "max_replicas": max(arguments.min_replicas, arguments.max_replicas),
        "target_ongoing_requests": ONGOING // 2,
    }
    deployment = serve.deployment(
        name="hf_clip",
        autoscaling_config=autoscaling,
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
    )
    return deployment(serve.ingress(build)(_Replica)).bind()


class _Replica:
    """A replica that Ray starts anew when its model does not answer."""

    app: FastAPI  # of the wrapper that `serve.ingress` makes

    async def check_health(self) -> None:
        """Raise unless the model answers."""
        await self.app.state.service.check_ready()


def replica_app(arguments: RayArguments) -> FastAPI:
    """Make the application of one replica."""
    classifier = saved_classifier(arguments.labels)
    labels = () if classifier else tuple(label for label in map(str.strip, arguments.labels.split(",")) if label)
    settings = ServerSettings(
        name=Path(arguments.source).name if os.path.exists(arguments.source) else arguments.source,
        index=arguments.index,
        labels=labels,
        classifier=arguments.labels if classifier else None,
        max_batch=arguments.max_batch,
        max_wait_ms=arguments.max_wait_ms,
        api_key=arguments.api_key or os.environ.get("HF_CLIP_API_KEY"),
    )

    def load() -> tuple[Any, Any]:
        import torch

        from ..loading import load_clip

        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return load_clip(
            arguments.source,
            device=device,
            dtype=getattr(torch, arguments.dtype),
            optimize=arguments.optimize,
            trust_remote_code=arguments.trust_remote_code,
        )

    return create_app(load, settings, wait=True)


__all__ = ["RayArguments", "app"]
