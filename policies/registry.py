"""Parts of a policy found by name: our own and those that installed packages bring."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any, Generic, TypeVar

Part_co = TypeVar("Part_co", covariant=True)
Factory = TypeVar("Factory", bound=type)


class UnknownNameError(ValueError):
    """A name that is not in the registry; the message lists the known ones."""


class InvalidOptionError(ValueError):
    """An option that a part does not have, or a value that it does not accept."""


class PluginError(ValueError):
    """An entry point that cannot be loaded, is ambiguous, or is not what its group asks for."""


class Registry(Generic[Part_co]):
    """Factories of one kind of part.

    A class of ours is added by the decorator `register`. Any installed package adds one through an
    entry point of the registry's group, whose name is the part's name and whose value is a class
    or function that takes the options as keywords. Entry points are read when a name is not ours,
    and only the selected one is imported. Our own names cannot be replaced.

    Attributes:
        kind: What is registered, for messages.
        group: Entry-point group.
    """

    def __init__(self, kind: str, group: str, method: str) -> None:
        """`method` is what a part must be able to do to count as one."""
        self.kind = kind
        self.group = group
        self._method = method
        self._factories: dict[str, Callable[..., Part_co]] = {}

    def register(self, factory: Factory) -> Factory:
        """Class decorator: register the class under its attribute `name`."""
        name: str = factory.name  # type: ignore[attr-defined]
        if name in self._factories:
            raise ValueError(f"{self.kind} {name!r} is registered twice; give one another name")
        self._factories[name] = factory
        return factory

    def names(self) -> list[str]:
        """All known names, ours first."""
        plugins = {e.name for e in metadata.entry_points(group=self.group)}
        return [*self._factories, *sorted(plugins - self._factories.keys())]

    def build(self, name: str, options: Mapping[str, Any] | None = None) -> Part_co:
        """The part called `name`, constructed with `options` as keywords.

        Raises:
            UnknownNameError: Neither we nor an entry point know `name`.
            InvalidOptionError: The part has no such option, or refuses the value.
            PluginError: The entry point is broken.
        """
        options = options or {}
        factory = self._factories.get(name) or self._plugin(name)
        self._check_options(name, factory, options)
        try:
            part = factory(**options)
        except (TypeError, ValueError) as error:
            raise InvalidOptionError(
                f"{self.kind} {name!r} with options {dict(options)}: {error}"
            ) from error
        if not callable(getattr(part, self._method, None)):
            raise PluginError(
                f"{self.kind} {name!r} is a {type(part).__name__} without the method "
                f"{self._method!r}; see the protocol of {self.kind}s"
            )
        return part

    def _plugin(self, name: str) -> Callable[..., Part_co]:
        found = {e.value: e for e in metadata.entry_points(group=self.group, name=name)}
        if not found:
            raise UnknownNameError(_unknown(self.kind, name, self.names()))
        if len(found) > 1:
            raise PluginError(
                f"{self.kind} {name!r} is offered by {' and '.join(sorted(found))}; "
                "uninstall all but one"
            )
        (entry,) = found.values()
        try:
            factory = entry.load()
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"{self.kind} {name!r} (entry point {entry.value!r}) cannot be loaded: {error}"
            ) from error
        if not callable(factory):
            raise PluginError(
                f"{self.kind} {name!r} (entry point {entry.value!r}) is a "
                f"{type(factory).__name__}, must be a class or a function that makes one"
            )
        checked: Callable[..., Part_co] = factory
        return checked

    def _check_options(
        self, name: str, factory: Callable[..., Part_co], options: Mapping[str, Any]
    ) -> None:
        parameters = inspect.signature(factory).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        for option in options:
            if option not in parameters:
                raise InvalidOptionError(
                    _unknown(f"option of {self.kind} {name!r}:", option, parameters)
                )


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Raise `InvalidOptionError` unless `value` is one of `choices`."""
    if value not in choices:
        raise InvalidOptionError(_unknown(f"value of {option}:", value, choices))


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise `UnknownNameError` unless `name` is `known`."""
    if name not in known:
        raise UnknownNameError(_unknown(kind, name, known))


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}; known are {', '.join(names) or 'none'}{hint}"
