"""Finds the items in what a language model wrote, whatever it wrote around them.

Models think aloud with braces, put JSON into fences and remarks after it, write bare lists or an object a line, leave
commas behind, or are cut off in the middle. Whole items are kept in all of these; half an item is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from restage.prompts.answers import Reply

__all__ = ["Malformed", "parse_items"]

MAX_STARTS = 2_000
"""Number of places in an answer at which JSON is looked for."""
MAX_CHARACTERS = 500_000
THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
THOUGHTS_END = re.compile(r"^.*</(?:think|thinking|thought|reasoning)>", re.DOTALL | re.IGNORECASE)
"""Of servers that leave out the opening mark, as it stands in the prompt."""
FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)(?:```|\Z)", re.DOTALL)
_DECODER = json.JSONDecoder()


class Malformed(Exception):
    """An answer, or an item of it, is not what was asked for; the message says why."""


def parse_items(reply: Reply, num_items: int = 1) -> list[Any]:
    """Return the items of an answer.

    Args:
        reply: the answer.
        num_items: how many were asked for; a mended reading is tried if fewer are found.

    Raises:
        Malformed: the model refused, or its answer holds no items.
    """
    if reply.refusal:
        raise Malformed("the model refused")
    if reply.finish_reason == "content_filter":
        raise Malformed("the server's content filter stopped it")
    is_cut = reply.finish_reason == "length"
    if not reply.content.strip():
        raise Malformed("the answer is empty" + (", all tokens went into thinking" if is_cut else ""))
    text = THOUGHTS_END.sub("", THOUGHTS.sub("", reply.content[:MAX_CHARACTERS]))
    found, is_list = _items_in(text)
    if len(found) < num_items:
        mended = _mend(text, is_cut=is_cut)
        found = mended if len(mended) > len(found) else found
    if found or is_list:
        return found
    if is_cut:
        raise Malformed("the answer was cut off")
    is_json = next(_values(text), None) is not None
    raise Malformed("the answer has no list 'pairs'" if is_json else "the answer is not JSON")


def _values(text: str) -> Iterator[Any]:
    """Yield the outermost objects and lists of a text that are whole."""
    place, num_starts = 0, 0
    starts = re.compile(r"[{\[]")
    while (start := starts.search(text, place)) and num_starts < MAX_STARTS:
        num_starts += 1
        try:
            value, place = _DECODER.raw_decode(text, start.start())
            yield value
        except (ValueError, RecursionError):
            place = start.end()


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and {"source", "target"} <= value.keys()


def _items_in(text: str) -> tuple[list[Any], bool]:
    """Return the items of a text, and whether a whole list of items is there, be it empty.

    The last whole list counts, since drafts come before the answer. Without one, all whole items after the beginning of
    the last list do: of an answer that was cut off, or an object a line.
    """
    lists = []
    for value in _values(text):
        if isinstance(value, dict) and isinstance(value.get("pairs"), list):
            lists.append(value["pairs"])
        elif isinstance(value, list) and value and all(map(_is_item, value)):
            lists.append(value)
    if lists:
        return next((found for found in reversed(lists) if found), lists[-1]), True
    begin = max(text.rfind('"pairs"'), 0)
    return [value for value in _values(text[begin:]) if _is_item(value)], False


def _mend(text: str, *, is_cut: bool) -> list[Any]:
    """Read JSON that is not quite JSON; the last item of an answer that was cut off may be half of one."""
    from json_repair import repair_json

    fenced = [found for found in FENCE.findall(text) if "{" in found]
    text = (fenced[-1] if fenced else text).strip()
    begin = max(text.rfind('"pairs"'), 0)
    opening = re.search(r"[{\[]", text)
    start = text.rfind("{", 0, begin) if begin else opening.start() if opening else -1
    if start < 0:
        return []
    try:
        value = repair_json(text[start:], return_objects=True, skip_json_loads=True)
    except (ValueError, RecursionError, IndexError, TypeError):
        return []
    if isinstance(value, dict):
        value = value.get("pairs", [value])
    if not isinstance(value, list):
        return []
    is_cut = is_cut or not text.rstrip("`\n ").endswith(("}", "]"))
    items = [item for item in value if _is_item(item)]
    return items[:-1] if is_cut else items
