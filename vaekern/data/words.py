"""The numbers that some specs carry after their colon, such as manifold:5:20."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Word(NamedTuple):
    """One number of a spec: its name as the list of specs writes it, its type and its default."""

    name: str
    kind: Callable[[str], float | int]
    default: float | int


def numbers(spec: str, argument: str, *words: Word) -> list[float | int]:
    """The numbers that ``argument`` gives, in the order of ``words``; the defaults for the rest.

    Only the spelling is checked: what values mean anything, the functions that take them know.

    Raises:
        ValueError: more of them than ``words``, or one that is no number of its kind.
    """
    given = argument.split(":") if argument else []
    usage = spec + "".join(f"[:{word.name}]" for word in words)
    if len(given) > len(words):
        raise ValueError(f"spec must be written {usage}, got {spec}:{argument}")
    values = [word.default for word in words]
    for i, text in enumerate(given):
        if not text:
            continue  # manifold::50 keeps the first default
        try:
            values[i] = words[i].kind(text)
        except ValueError:
            wanted = "a whole number" if words[i].kind is int else "a number"
            raise ValueError(
                f"{words[i].name} of spec {usage} must be {wanted}, got {text!r} in "
                f"{spec}:{argument}"
            ) from None
    return values
