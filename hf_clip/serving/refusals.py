"""Refusals: answers to requests that are not computed."""

import math
from typing import Any

from pydantic import TypeAdapter

as_json = TypeAdapter(Any).dump_json
PHRASES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    501: "not_implemented_error",
    503: "unavailable_error",
}


class Refusal(Exception):
    """Raised where a request is answered with an error status.

    Args:
        status: The HTTP status.
        message: One sentence.
        param: The part of the request that is meant, such as `input[3]`.
        retry_after: Seconds after which the sender may try again.
    """

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    @property
    def content(self) -> dict[str, dict[str, str | None]]:
        """Return the answer's body, in the form of OpenAI's errors."""
        kind = PHRASES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


__all__ = ["Refusal", "as_json"]
