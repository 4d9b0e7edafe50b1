"""Settings of the editor that asks an image endpoint: where it is, how it is asked, and what it may cost.

They are apart from the editor, so that a command can offer them without importing torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from restage.records import InputError
from restage.run.access import check_recordable
from restage.run.paid import Usage

__all__ = ["EndpointConfig"]

MAX_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """How the editor `endpoint` asks any OpenAI-compatible `/v1/images/edits`; its model is named by --model."""

    base_url: str = ""
    """Address of the endpoint, such as http://127.0.0.1:8000/v1; default: OPENAI_BASE_URL, else OpenAI's own."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is never a flag, since flags are recorded."""
    price_per_picture: float = 0.0
    """Price of one edited view, in the currency of --max-cost."""
    max_cost: float | None = None
    """Stop before a request that could exceed this cost; all answers in the cache folder count. Needs the price."""
    min_views: int = 12
    """An edit goes on without the views that could not be edited if at least this many were; of fewer, all must be."""
    num_parallel: int = 4
    """Requests under way at the same time."""
    timeout_s: float = 300.0
    """Seconds that the server may take for one view."""
    max_tries: int = 6
    """Number of times that a request is sent, with growing pauses, if the server is busy, fails or does not answer."""
    picture_size: str = ""
    """Sizes that the model takes, such as 1024x1024,1536x1024; views are scaled and padded to the one that fits best.
    `own` sends views as they are. Default: what the model is known to take, else about a megapixel."""
    cache: Path | None = None
    """Folder where answers are kept, so that nothing is paid for twice; default: `endpoint` in the run."""

    def __post_init__(self) -> None:
        if min(self.min_views, self.num_parallel, self.max_tries) < 1 or self.timeout_s <= 0:
            raise InputError("min_views, num_parallel and max_tries must be at least 1, and timeout_s above 0")
        if self.price_per_picture < 0:
            raise InputError(f"the price of a picture must not be negative, got {self.price_per_picture}")
        if self.max_cost is not None and not self.price_per_picture:
            raise InputError("max_cost needs a price; add --price-per-picture")
        check_recordable(self.base_url)
        _ = self.sizes

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Widths and heights of `picture_size`."""
        if self.picture_size in ("", "own"):
            return ()
        found = [re.fullmatch(r"(\d{1,4})x(\d{1,4})", part.strip()) for part in self.picture_size.split(",")]
        sizes = tuple((int(one[1]), int(one[2])) for one in found if one)
        if len(sizes) != len(found) or not all(16 <= side <= MAX_SIDE for size in sizes for side in size):
            raise InputError(f"expected picture_size like 1024x1024,1536x1024, or own, got {self.picture_size!r}")
        return sizes

    def cost(self, usage: Usage) -> float:
        """Return the cost of some pictures."""
        return usage.num_requests * self.price_per_picture

    def refusal(self, spent: Usage, total: Usage, needed: Usage) -> str:
        """Return why a picture is not asked for that leads to this total; empty if it may be."""
        if self.max_cost is None or self.cost(total) <= self.max_cost * (1 + 1e-9):
            return ""
        return (
            f"the cost limit of {self.max_cost:g} is reached: {self.cost(spent):.4g} is spent and the next picture "
            f"costs {self.cost(needed):.4g}; raise --max-cost to go on, what was answered is kept"
        )
