"""The writer that asks a language model, through any OpenAI-compatible endpoint, for many pairs a request.

Models think aloud with braces, put JSON into fences and remarks after it, write bare lists or an object a line, leave
commas behind, or are cut off in the middle. Whole items are kept in all of these; half an item is none. What is read is
data: it is checked text by text, and whatever is not a prompt pair becomes a reject with its reason.
"""

from __future__ import annotations

import importlib.util
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from restage.prompts.answers import Reply
from restage.prompts.endpoint import Asked, Endpoint
from restage.prompts.forms import OPEN_SPACE
from restage.prompts.llm_config import find_access
from restage.prompts.llm_messages import SCHEMA, write_messages
from restage.prompts.orders import Answer, Order, Writer, WriterSettings
from restage.records import MissingExtra, PromptPair, content_id, derive_seed
from restage.run.paid import Usage

__all__ = ["LlmWriter", "Malformed", "pair_of_item", "parse_items"]

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
    """Return the items of an answer, mended if fewer are found than asked for; Malformed if it holds none."""
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


MAX_INSTRUCTION_WORDS = 30
MAX_SWAPS = 3
"""Captions that differ by more words than this are aligned by what they have in common instead."""
MAX_WORDS = 20
MAX_WORD_LENGTH = 100
_ARTICLES = frozenset(("a", "an", "the"))
_WORD = re.compile(r"[\w'-]+")


def _text(item: dict[str, Any], name: str, max_words: int) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f"{name!r} is missing or no text")
    text = " ".join(value.split())
    if any(unicodedata.category(character)[0] == "C" for character in text):
        raise Malformed(f"{name!r} holds control characters")
    if len(text.split()) > max_words or len(text) > 12 * max_words:
        raise Malformed(f"{name!r} is longer than {max_words} words")
    return text


def _swaps(source: str, target: str) -> tuple[tuple[str, str], ...]:
    """The words that differ, where the captions have the same number of words and few differ."""
    old, new = source.replace(",", "").split(), target.replace(",", "").split()
    if len(old) != len(new):
        return ()
    swaps = tuple(
        (a.strip(".;:!?"), b.strip(".;:!?"))
        for a, b in zip(old, new, strict=True)
        if a != b and not {a.casefold(), b.casefold()} <= _ARTICLES
    )
    return swaps if len(swaps) <= MAX_SWAPS and all(a and b for a, b in swaps) else ()


def _words(item: dict[str, Any], kind: str, source: str, target: str) -> tuple[str, ...]:
    """The words that name what changes: the model's where they stand in a caption, else those that differ."""
    given = item.get("words", [])
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        raise Malformed("'words' is no list of texts")
    if len(given) > MAX_WORDS or any(len(word) > MAX_WORD_LENGTH for word in given):
        raise Malformed(f"'words' holds more than {MAX_WORDS} words, or very long ones")
    if kind == "time":
        return ()
    stand = [
        " ".join(word.split())
        for word in given
        if word.strip() and re.search(rf"(?<!\w){re.escape(' '.join(word.split()))}(?!\w)", f"{source}\n{target}", re.I)
    ]
    if not stand:
        old, new = _WORD.findall(source), _WORD.findall(target)
        changed = [word for word in old if word not in new] + [word for word in new if word not in old]
        stand = [word for word in changed if word.casefold() not in _ARTICLES]
    return tuple(dict.fromkeys(stand))


def pair_of_item(item: Any, order: Order, *, max_words: int, writer: str) -> PromptPair:
    """Make a prompt pair of one item of an answer; raises Malformed if it is not one."""
    if not isinstance(item, dict):
        raise Malformed("an item is no object")
    source, target = _text(item, "source", max_words), _text(item, "target", max_words)
    instruction = _text(item, "instruction", MAX_INSTRUCTION_WORDS)
    if order.caption and source.casefold().rstrip(".") != order.caption.casefold().rstrip("."):
        raise Malformed("it changed the user's caption")
    source = order.caption or source
    if source.casefold() == target.casefold():
        raise Malformed("source and target are the same")
    if instruction.casefold() in (source.casefold(), target.casefold()):
        raise Malformed("the instruction is a caption")
    undo = _text(item, "undo", MAX_INSTRUCTION_WORDS) if item.get("undo") else ""
    return PromptPair(
        source=source,
        target=target,
        instruction=instruction,
        kind=order.kind,
        swaps=_swaps(source, target),
        words=_words(item, order.kind, source, target),
        form=order.form_text or "llm",
        parent=content_id("caption", order.caption) if order.caption else "",
        writer=writer,
        undo=undo,
    )


class LlmWriter(Writer):
    """Asks for chunks of pairs, several at a time; answers come in the order of the chunks whatever comes first."""

    max_draws = 4
    form_space = OPEN_SPACE
    asks_model = True

    def __init__(self, settings: WriterSettings) -> None:
        """Open the endpoint."""
        if importlib.util.find_spec("json_repair") is None:
            raise MissingExtra("json-repair", "llm")
        self.chunk_size = settings.llm.pairs_per_request
        self.num_parallel = settings.llm.limits.num_parallel
        self.endpoint = Endpoint(settings.llm, settings.cache)
        self._settings = settings
        self._name = f"llm {find_access(settings.llm).model}"
        self._used = Usage()

    def remark(self) -> str:
        """What the cache folder holds already, and what was found out about the server."""
        cache, parts = self.endpoint.cache, []
        if cache.past.num_requests:
            lost = f"; {cache.num_lost} were under way when it was killed and may be paid" if cache.num_lost else ""
            kept = cache.past.num_requests - cache.num_lost
            parts = [f"{kept} answers are kept from before and cost nothing again{lost}"]
        return "; ".join([*parts, *self.endpoint.client.said])

    def facts(self) -> dict[str, Any]:
        """Requests, tokens and cost of the answers that were used, whenever they were paid."""
        return {
            "requests": self._used.num_requests,
            "input_tokens": self._used.num_input,
            "output_tokens": self._used.num_output,
            "cost": round(self.endpoint.budget.cost(self._used), 6),
        }

    def write(self, chunks: Sequence[Sequence[Order]]) -> Iterator[Answer]:
        """Ask for all chunks at once."""

        def ask(chunk: Sequence[Order]) -> Asked:
            messages = write_messages(chunk, self._settings.examples)
            return self.endpoint.ask(messages, schema=SCHEMA, seed=derive_seed("request", chunk[0].seed))

        pool = ThreadPoolExecutor(max_workers=self.num_parallel, thread_name_prefix="llm")
        try:
            for chunk, asked in zip(chunks, pool.map(ask, chunks), strict=True):
                self._used += asked.reply.usage
                yield from self._answers(chunk, asked)
        except BaseException:
            self.endpoint.client.close()
            raise
        finally:
            # Requests under way are waited for: they are paid, so their answers are to be kept.
            pool.shutdown(wait=True, cancel_futures=True)

    def _answers(self, chunk: Sequence[Order], asked: Asked) -> Iterator[Answer]:
        reply, request, blotter = asked.reply, asked.request_id, self.endpoint.client.blotter
        is_cut = reply.finish_reason == "length"
        hint = "; raise --llm.max-output-tokens, or lower --llm.pairs-per-request" if is_cut else ""
        try:
            # Blotted once more, since a model may write the key in escapes that reading the items resolves.
            items = [blotter.value(item) for item in parse_items(reply, len(chunk))]
        except Malformed as error:
            for index, order in enumerate(chunk):
                raw = "" if index else reply.refusal or reply.content
                yield Answer(order, reason=f"{error}{hint}", raw=raw, request=request)
            return
        missing = f"the answer was cut off{hint}" if is_cut else "the answer has fewer pairs than asked for"
        for order, item in zip(chunk, _in_order(items, chunk), strict=True):
            if item is None:
                yield Answer(order, reason=missing, request=request)
                continue
            try:
                pair = pair_of_item(item, order, max_words=self._settings.llm.max_words, writer=self._name)
                yield Answer(order, pair, request=request)
            except Malformed as error:
                yield Answer(
                    order, reason=str(error), raw=blotter.text(json.dumps(item, ensure_ascii=False)), request=request
                )


def _in_order(items: Sequence[Any], chunk: Sequence[Order]) -> list[Any]:
    """Return an item for each order; for captions of the user's by its source, since an item may be missing between."""
    if not chunk[0].caption:
        return [*items[: len(chunk)], *[None] * (len(chunk) - len(items))]
    by_source = {_plain(item.get("source")): item for item in reversed(items) if isinstance(item, dict)}
    found = [by_source.get(_plain(order.caption)) for order in chunk]
    is_whole = len(items) >= len(chunk)
    return [items[place] if item is None and is_whole else item for place, item in enumerate(found)]


def _plain(caption: Any) -> str:
    return caption.casefold().rstrip(".").strip() if isinstance(caption, str) else ""
