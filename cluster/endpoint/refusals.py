"""Why a request is refused or fails, in vLLM's own errors, which its server turns into answers."""

from __future__ import annotations

import math
from http import HTTPStatus

from vllm.exceptions import GenerationError as EngineFailure
from vllm.exceptions import GracefulHTTPError, VLLMError, VLLMValidationError

from cluster.call import GenerationError
from cluster.messages import Cause, ClusterLoad
from policies.request import RequestClass

_STATUS = {
    Cause.IMPOSSIBLE: HTTPStatus.BAD_REQUEST,
    Cause.OVERLOADED: HTTPStatus.TOO_MANY_REQUESTS,
    Cause.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Cause.EXPIRED: HTTPStatus.GATEWAY_TIMEOUT,
}


class RefusedError(GracefulHTTPError):
    """A request that cannot be served now.

    Attributes:
        retry_after_s: Whole seconds after which it may be; None: nobody knows.
    """

    def __init__(self, message: str, status: HTTPStatus, retry_after_s: int | None = None) -> None:
        super().__init__(message, status)
        self.retry_after_s = retry_after_s


def status_of(cause: Cause) -> HTTPStatus:
    """The HTTP status of a request that failed for this reason."""
    return _STATUS.get(cause, HTTPStatus.INTERNAL_SERVER_ERROR)


def as_vllm_error(error: GenerationError) -> VLLMError:
    """What vLLM's server answers as the HTTP status that belongs to the error's cause."""
    if error.cause is Cause.IMPOSSIBLE:
        return VLLMValidationError(str(error))
    if error.cause not in _STATUS:
        return EngineFailure(str(error))
    later = math.ceil(error.retry_after_s) if error.cause is Cause.OVERLOADED else None
    return RefusedError(str(error), status_of(error.cause), later)


def check_load(load: ClusterLoad | None, requests: int, request_class: RequestClass) -> None:
    """Refuse what the cluster would refuse, before any work is done for it.

    How full the offline queue is the controller judges; only its limit is known here.

    Args:
        load: What the controller said last; None: nothing yet.
        requests: How many would be submitted.
        request_class: Of what class.

    Raises:
        RefusedError: 503: no replica serves and none is coming; 429: the queue is full.
        VLLMValidationError: The queue could never take that many.
    """
    if load is None:
        return
    if not load.serving and not load.coming:
        raise RefusedError(
            "no replica serves and none is being started: see `tiebreak status`",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )
    is_online = request_class is RequestClass.ONLINE
    most = load.most_waiting if is_online else load.most_waiting_offline
    if requests > most:
        raise VLLMValidationError(
            f"the request asks for {requests:,} answers, at most {most:,} "
            f"{request_class.name.lower()} requests may wait at any time: ask for fewer",
            parameter="n",
        )
    if not is_online:
        return
    too_many = load.waiting + requests > load.most_waiting
    if too_many or load.waiting_tokens >= load.most_waiting_tokens:
        raise RefusedError(
            f"{load.waiting:,} requests with {load.waiting_tokens:,} predicted tokens wait, at "
            f"most {load.most_waiting:,} with {load.most_waiting_tokens:,} may: ask again later",
            HTTPStatus.TOO_MANY_REQUESTS,
            load.retry_after_s,
        )


def check_size(load: ClusterLoad | None, prompt_tokens: int, max_tokens: int) -> None:
    """Refuse what no replica can ever hold.

    Raises:
        VLLMValidationError: It is larger than the largest request that any replica can hold.
    """
    if load is None or not load.largest_request:
        return
    if prompt_tokens + max_tokens > load.largest_request:
        raise VLLMValidationError(
            f"the request needs up to {prompt_tokens + max_tokens} tokens ({prompt_tokens} of the "
            f"prompt and {max_tokens} of the answer), but the largest that a replica can hold has "
            f"{load.largest_request}: shorten the prompt or lower max_tokens",
            parameter="max_tokens",
            value=max_tokens,
        )
