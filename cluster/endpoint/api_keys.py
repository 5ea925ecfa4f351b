"""The keys that the endpoint lets in, and whose they are."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.config import ConfigError
from cluster.endpoint.caller import MOST_TENANT_CHARACTERS

SHORTEST_KEY = 16
"""Fewest characters of a key, so that it cannot be guessed."""


class ApiKeys:
    """Who owns which key. Only hashes are kept.

    Args:
        tenants: Tenants by key.
    """

    def __init__(self, tenants: Mapping[str, str]) -> None:
        self._tenants = [(_hashed(key), tenant) for key, tenant in tenants.items()]

    def tenant(self, authorization: str | None, api_key: str | None = None) -> str | None:
        """Whose key a request carries; None: nobody's.

        Takes the same time for every wrong key.

        Args:
            authorization: The header of that name, `Bearer KEY`.
            api_key: The header `x-api-key`, where Anthropic's clients put theirs.
        """
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            given = api_key or ""
        hashed = _hashed(given.strip())
        owner = None
        for known, tenant in self._tenants:
            if hmac.compare_digest(known, hashed):
                owner = tenant
        return owner


def read_api_keys(path: str | None) -> ApiKeys | None:
    """The keys in a file with a line `tenant: key` for each; None: no file, everybody is let in.

    Raises:
        ConfigError: The file cannot be read or a line is wrong; the message never shows a key.
    """
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"gateway.api_keys: cannot read {path}: {reason}") from None
    tenants: dict[str, str] = {}
    for number, tenant, key in _lines(text):
        where = f"gateway.api_keys: line {number} of {path}"
        if not tenant or not key or len(tenant) > MOST_TENANT_CHARACTERS:
            raise ConfigError(f"{where} must read `tenant: key`")
        if len(key) < SHORTEST_KEY or not key.isascii() or len(key.split()) > 1:
            raise ConfigError(
                f"{where}: the key has {len(key)} characters, must have at least {SHORTEST_KEY}, "
                "ASCII without spaces"
            )
        if tenants.setdefault(key, tenant) != tenant:
            raise ConfigError(f"{where}: the key belongs to {tenants[key]!r} already")
    if not tenants:
        raise ConfigError(f"gateway.api_keys: {path} has no keys: add a line `tenant: key`")
    return ApiKeys(tenants)


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            tenant, _, key = line.partition(":")
            yield number, tenant.strip(), key.strip()


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
