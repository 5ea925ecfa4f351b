"""Who asks the endpoint for something, and how: what the OpenAI protocol has no place for."""

from __future__ import annotations

import contextvars
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from policies.request import RequestClass

TENANT_HEADER = "x-tenant"
CLASS_HEADER = "x-request-class"
TIMEOUT_HEADER = "x-request-timeout"

MOST_TENANT_CHARACTERS = 128
"""Length of the longest tenant name that a client may give itself."""


class BadCallerError(ValueError):
    """A header or a body field says something impossible; the message is for the client."""


class ForeignTenantError(BadCallerError):
    """The client names a tenant that is not its key's."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What the gateway knows of the client whose request it handles.

    Attributes:
        tenant: Whom the work is accounted to.
        request_class: Online or offline.
        timeout_s: Longest time for the request in seconds; None: no limit.
        text: The messages of a chat, for the predictor; empty: the prompt itself is its text.
        fixed_tenant: Whether the tenant comes from an API key, so that the client cannot choose.
    """

    tenant: str = "default"
    request_class: RequestClass = RequestClass.ONLINE
    timeout_s: float | None = None
    text: str = ""
    fixed_tenant: bool = False

    def says(self, tenant: str | None, request_class: str | None) -> Caller:
        """The caller after it has said more; None says nothing.

        Raises:
            BadCallerError: No such class, or no usable tenant name.
            ForeignTenantError: Another tenant than its key's.
        """
        chosen = self.request_class
        if request_class is not None:
            try:
                chosen = RequestClass[request_class.upper()]
            except KeyError:
                names = " or ".join(kind.name.lower() for kind in RequestClass)
                raise BadCallerError(
                    f"request class is {_shown(request_class)}, must be {names}"
                ) from None
        name = self.tenant
        if tenant is not None:
            name = _checked(tenant)
            if self.fixed_tenant and name != self.tenant:
                raise ForeignTenantError(
                    f"tenant is {_shown(name)}, but the API key belongs to {self.tenant!r}: leave "
                    "the tenant out"
                )
        return dataclasses.replace(self, tenant=name, request_class=chosen)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the cluster did not answer a request.

    Attributes:
        status: What HTTP calls it.
        text: In words.
    """

    status: HTTPStatus
    text: str


@dataclass(slots=True)
class Exchange:
    """A request to the gateway and what its answer has to say besides vLLM's.

    Attributes:
        caller: Who asks.
        retry_after_s: Seconds after which a refused request may be asked again; None: not said.
        failure: Why it failed once it ran or waited; None: it did not.
    """

    caller: Caller
    retry_after_s: int | None = None
    failure: Failure | None = None


EXCHANGE: contextvars.ContextVar[Exchange] = contextvars.ContextVar("exchange")
"""The exchange that the current task works for."""


def current_exchange() -> Exchange:
    """The exchange that the current task works for, or a new one of a caller unknown."""
    return EXCHANGE.get(None) or Exchange(Caller())


def caller_of_headers(
    headers: Mapping[str, str], *, tenant: str | None, longest_s: float | None
) -> Caller:
    """What the headers of a request say.

    Args:
        headers: By lower-case name.
        tenant: The one its API key belongs to; None: clients name their tenant.
        longest_s: Longest time any request may take, in seconds; None: no limit.

    Raises:
        BadCallerError: A value cannot be used; the message names header and value.
    """
    known = Caller() if tenant is None else Caller(tenant=tenant, fixed_tenant=True)
    caller = known.says(headers.get(TENANT_HEADER), headers.get(CLASS_HEADER))
    timeout_s = longest_s
    if (given := headers.get(TIMEOUT_HEADER)) is not None:
        asked_s = _seconds(given)
        timeout_s = asked_s if longest_s is None else min(asked_s, longest_s)
    return dataclasses.replace(caller, timeout_s=timeout_s)


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise BadCallerError(
            f"{TIMEOUT_HEADER} is {_shown(given)}, must be a number of seconds above 0"
        )
    return seconds


def _checked(tenant: str) -> str:
    if not tenant or len(tenant) > MOST_TENANT_CHARACTERS or not tenant.isprintable():
        raise BadCallerError(
            f"tenant is {_shown(tenant)}, must have 1 to {MOST_TENANT_CHARACTERS} characters, all "
            "of them printable"
        )
    return tenant


def _shown(value: str) -> str:
    return repr(value if len(value) <= 64 else value[:64] + "...")
