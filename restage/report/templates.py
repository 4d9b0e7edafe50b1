"""The templates of the pages: HTML with its style and script inside, everything that a run says escaped."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence

import jinja2
from markupsafe import Markup

from restage.report import words
from restage.scores.definitions import METRICS

__all__ = ["open_template"]


def open_template(name: str, styles: Sequence[str]) -> jinja2.Template:
    """A template of this package that may use the macros of `parts.html`, with the style sheets put into it."""
    package = importlib.resources.files("restage.report")

    def read(*names: str) -> str:
        return "\n".join(package.joinpath(name).read_text(encoding="utf-8") for name in names)

    environment = jinja2.Environment(
        loader=jinja2.DictLoader({source: read(source) for source in (name, "parts.html")}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"duration": words.unbroken_duration, "words": words.as_words, "plain": words.as_text}
    environment.filters.update(filters, pretty=words.as_json, number=words.format_number)
    environment.globals.update(
        style=Markup(read(*styles)),
        script=Markup(read("turn.js", "page.js")),
        interval_mark=words.interval_mark,
        is_number=math.isfinite,
        metrics=METRICS,
    )
    return environment.get_template(name)
