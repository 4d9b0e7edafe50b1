"""Prompt forms: what is fixed before a prompt pair is written, and which of them are written with next.

`kind=resize objects=1 size=small` is a form. The order of the features is its lineage: a form's parent is the form
without its last feature. Forms learn: each is an arm with a Beta posterior on the acceptance of its pairs. Trials are
read back from the rows of earlier runs; arms, posteriors and new arms follow from the trials and a seed, so there is no
other state that could be lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from restage.prompts.config import PROMPT_KINDS, FormsConfig
from restage.records import InputError, derive_seed
from restage.world.grammar import EDIT_KINDS, KINDS, SIZES, TIMES

__all__ = ["Arm", "Choice", "Form", "FormChooser", "FormSpace", "GRAMMAR_SPACE", "OPEN_SPACE"]
__all__ += ["Trial", "make_arms", "read_form", "write_form"]

CONTROL = "control"
"""First word of the form's text if the pair belongs to the control slice."""


@dataclass(frozen=True)
class Form:
    """Features in the order in which they were fixed; the first is the kind of edit."""

    features: tuple[tuple[str, str], ...]

    @property
    def kind(self) -> str:
        """The kind of edit."""
        return self.as_dict["kind"]

    @property
    def as_dict(self) -> dict[str, str]:
        """The values of the features by name."""
        return dict(self.features)

    @property
    def parent(self) -> Form | None:
        """The form that this one was made from; None if it has a single feature."""
        return Form(self.features[:-1]) if len(self.features) > 1 else None

    def refine(self, feature: str, value: str) -> Form:
        """Returns the child with one more feature."""
        return Form((*self.features, (feature, value)))

    def fits(self, features: Mapping[str, str]) -> bool:
        """Whether something with these features could have been written with this form."""
        return all(features.get(name) == value for name, value in self.features)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.features)


class Choice(NamedTuple):
    """The form of a prompt pair, and whether it belongs to the control slice."""

    form: Form
    is_control: bool


def read_form(text: str) -> Choice | None:
    """Read the `form` field of a prompt pair; None if it names no form, as in pairs of users."""
    words = text.split()
    is_control = words[:1] == [CONTROL]
    parts = [word.partition("=") for word in words[is_control:]]
    if not parts or parts[0][0] != "kind" or not all(name and sign and value for name, sign, value in parts):
        return None
    return Choice(Form(tuple((name, value) for name, _, value in parts)), is_control)


def write_form(form: Form, *, is_control: bool) -> str:
    """Write the `form` field of a prompt pair."""
    return f"{CONTROL} {form}" if is_control else str(form)


@dataclass(frozen=True, kw_only=True)
class FormSpace:
    """The forms that a writer can use: those it starts with, and the features that can be added to them."""

    root_feature: str  # name of the feature that every form fixes, beside the kind of edit
    root_values: Mapping[str, tuple[str, ...]]  # values of the root feature, by kind of edit
    refinements: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]]
    """Further features and their values, by kind of edit."""

    def originals(self, kinds: Iterable[str]) -> tuple[Form, ...]:
        """Return the forms that the writer starts with."""
        forms = []
        for kind in kinds:
            if kind not in self.root_values:
                raise InputError(f"unknown kind of edit {kind!r}; known: {', '.join(self.root_values)}")
            forms += [Form((("kind", kind), (self.root_feature, value))) for value in self.root_values[kind]]
        return tuple(forms)

    def has(self, form: Form) -> bool:
        """Whether the writer can write with this form."""
        names = [name for name, _ in form.features]
        known = {**dict(self.refinements.get(form.kind, ())), "kind": tuple(self.root_values)}
        known[self.root_feature] = self.root_values.get(form.kind, ())
        return len(names) == len(set(names)) and all(value in known.get(name, ()) for name, value in form.features)

    def children(self, form: Form) -> tuple[Form, ...]:
        """Return all forms with one more feature than this one."""
        fixed = form.as_dict
        free = [(name, values) for name, values in self.refinements[form.kind] if name not in fixed]
        return tuple(form.refine(name, value) for name, values in free for value in values)


_OBJECTS = {"add": ("1", "2"), "remove": ("2", "3"), "move": ("2", "3")}
_TIMES = ("time", TIMES)
_OF_OBJECTS = (_TIMES, ("noun", KINDS), ("size", tuple(size or "normal" for size in SIZES)))

GRAMMAR_SPACE = FormSpace(
    root_feature="objects",
    root_values={kind: _OBJECTS.get(kind, ("1", "2", "3")) for kind in PROMPT_KINDS[2]},
    refinements={kind: (_TIMES,) if kind in ("ground", "time", "move") else _OF_OBJECTS for kind in PROMPT_KINDS[2]},
)
"""Chosen by what moves acceptance in 2,160 pairs of the miniature: the kind of edit most (0.21 to 0.99), then, within
kinds, the number of objects (resize: 0.32, 0.12, 0.06), the edited object (recolour: house 0.46, others 0.86 and more)
and its size (add: big 0.66, small 0.27). Caption wordings and grounds differ by 0.03 at most, and the instruction's
wording never reaches the picture, so these are not features."""

OPEN_SPACE = FormSpace(
    root_feature="objects",
    root_values={kind: ("2", "3") if kind == "remove" else ("1", "2") for kind in EDIT_KINDS},
    refinements={
        kind: (
            ("subject", ("animal", "person", "vehicle", "building", "food", "furniture", "plant", "clothing")),
            ("style", ("photograph", "painting", "illustration", "film-still")),
            ("setting", ("indoors", "street", "nature", "studio")),
            ("length", ("short", "detailed")),
        )
        for kind in EDIT_KINDS
    },
)
"""Forms of captions in free text."""


class Trial(NamedTuple):
    """One finished pair: what it was written with, what it shows, and whether it was accepted."""

    form: Form
    features: frozenset[tuple[str, str]]
    is_accepted: bool
    is_control: bool


@dataclass(frozen=True)
class Arm:
    """A form and what is known about its acceptance."""

    form: Form
    is_original: bool
    num_accepted: int
    num_rejected: int
    alpha: float
    beta: float
    lower: float  # lower bound of the acceptance: a quantile of the posterior

    @property
    def mean(self) -> float:
        """Mean of the posterior."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def num_trials(self) -> int:
        """Number of pairs that say something about the form."""
        return self.num_accepted + self.num_rejected


_Evidence = Mapping[tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]], bool], int]
"""How many trials were written with some features, show some, and were accepted or not."""


def _count(form: Form, evidence: _Evidence) -> tuple[int, int]:
    """Return the numbers of accepted and of rejected pairs that count for a form.

    A pair counts for the form that it was written with, and for every narrower form that it happens to fit, since among
    the pairs of the wider form those are a fair sample. It does not count for wider forms, which it would bias.
    """
    features = frozenset(form.features)
    found = [0, 0]
    for (written, shown, is_accepted), count in evidence.items():
        if written <= features <= shown:
            found[not is_accepted] += count
    return found[0], found[1]


def _arm(form: Form, evidence: _Evidence, config: FormsConfig, originals: frozenset[Form]) -> Arm:
    prior_mean, strength = 0.5, 2.0
    # A child starts from what its parent has shown, so that a new form is neither feared nor favored without reason.
    if form not in originals and form.parent is not None:
        parent = _arm(form.parent, evidence, config, originals)
        prior_mean, strength = parent.mean, config.prior_strength
    accepted, rejected = _count(form, evidence)
    from scipy.stats import beta as beta_distribution  # a second of import, which only learning needs

    alpha, beta = strength * prior_mean + accepted, strength * (1 - prior_mean) + rejected
    lower = float(beta_distribution.ppf(config.lower_quantile, alpha, beta))
    return Arm(form, form in originals, accepted, rejected, alpha, beta, lower)


def _new_forms(
    arms: Sequence[Arm], space: FormSpace, evidence: _Evidence, config: FormsConfig, seed: int
) -> list[Form]:
    """Return children of the arm that is most surely good: those that promise most in one draw from each posterior."""
    grown = [arm for arm in arms if arm.num_trials >= config.min_trials and arm.mean < config.good_enough]
    if not grown or len(arms) >= config.max_forms_per_kind:
        return []
    known = {frozenset(arm.form.features) for arm in arms}
    rng = np.random.default_rng(seed)
    for parent in sorted(grown, key=lambda arm: (-arm.lower, str(arm.form))):
        drawn = []
        for child in space.children(parent.form):
            if frozenset(child.features) not in known:
                arm = _arm(child, evidence, config, frozenset(arm.form for arm in arms if arm.is_original))
                drawn.append((float(rng.beta(arm.alpha, arm.beta)), child))
        # A child that is no better than its parent would only narrow what is written.
        better = [child for promise, child in sorted(drawn, key=lambda item: -item[0]) if promise > parent.mean]
        if better:
            return better[: min(config.children_per_round, config.max_forms_per_kind - len(arms))]
    return []


def make_arms(
    space: FormSpace, kinds: Sequence[str], trials: Sequence[Trial], *, config: FormsConfig, seed: int
) -> tuple[Arm, ...]:
    """Return all arms that follow from the trials: original forms, forms already written with, and new children."""
    originals = frozenset(space.originals(kinds))
    # Sorted, so that the order in which trials were read changes neither the arms nor the draws from them.
    forms = dict.fromkeys(space.originals(kinds))
    written = {trial.form for trial in trials if len(trial.form.features) > 2}
    written = {form for form in written if form.kind in kinds and space.has(form)}
    forms |= dict.fromkeys(sorted(written, key=str))
    evidence = Counter((frozenset(trial.form.features), trial.features, trial.is_accepted) for trial in trials)
    arms = [_arm(form, evidence, config, originals) for form in forms]
    for kind in kinds:
        of_kind = [arm for arm in arms if arm.form.kind == kind]
        new = _new_forms(of_kind, space, evidence, config, derive_seed(seed, "children", kind))
        arms += [_arm(form, evidence, config, originals) for form in new]
    return tuple(arms)


class FormChooser:
    """Chooses the form of one pair after the other: control slice, quotas of kinds, Thompson sampling."""

    def __init__(self, arms: Sequence[Arm], config: FormsConfig, seed: int) -> None:
        """Start a round; the same arms (of `make_arms`) and seed give the same forms."""
        self.config = config
        self.arms = tuple(arms)
        self._originals = [arm.form for arm in arms if arm.is_original]
        self._kinds = tuple(dict.fromkeys(arm.form.kind for arm in arms))
        self._alpha = np.array([arm.alpha for arm in arms])
        self._beta = np.array([arm.beta for arm in arms])
        self._kind_of_arm = np.array([self._kinds.index(arm.form.kind) for arm in arms])
        self._is_open = np.ones(len(arms), dtype=bool)
        self._counts = np.zeros(len(self._kinds))
        self._num_asked = 0
        self._control_cycle: list[Form] = []
        self._rng = np.random.default_rng(derive_seed(seed, "forms"))
        self._control_rng = np.random.default_rng(derive_seed(seed, "control"))

    def choose(self) -> Choice:
        """Choose the form of the next pair; refuses when every form is exhausted."""
        share, asked = self.config.control_share, self._num_asked
        self._num_asked += 1
        # Control pairs are spread evenly, so that a round that is cut short has its share of them, too.
        if int((asked + 1) * share + 1e-9) > int(asked * share + 1e-9):
            return Choice(self._next_control(), True)
        return self._sample()

    def exhaust(self, choice: Choice) -> Choice:
        """Choose a form in place of one for which the writer has no more new pairs; that one is not chosen again."""
        if choice.is_control:
            self._originals = [form for form in self._originals if form != choice.form]
            self._control_cycle = [form for form in self._control_cycle if form != choice.form]
            return Choice(self._next_control(), True) if self._originals else self._sample()
        for index, arm in enumerate(self.arms):
            if arm.form == choice.form:
                self._is_open[index] = False
                self._counts[self._kind_of_arm[index]] -= 1
        return self._sample()

    def _next_control(self) -> Form:
        """Take the next original form of a shuffled cycle, which is as uniform as drawing anew and has less noise."""
        if not self._control_cycle:
            order = self._control_rng.permutation(len(self._originals))
            self._control_cycle = [self._originals[index] for index in order]
        return self._control_cycle.pop()

    def _allowed_kinds(self) -> np.ndarray:
        """Mark the kinds that are below their smallest share; if there are none, those below their largest."""
        has_open = np.array([bool(self._is_open[self._kind_of_arm == kind].any()) for kind in range(len(self._kinds))])
        expected = (self._counts.sum() + 1) / len(self._kinds)
        behind = has_open & (self._counts < self.config.min_kind_share * expected)
        below = has_open & (self._counts + 1 <= np.maximum(self.config.max_kind_share * expected, 1))
        for allowed in (behind, below, has_open):
            if allowed.any():
                return allowed
        raise InputError("no form has new pairs left; ask for fewer pairs or more kinds of edit")

    def _sample(self) -> Choice:
        # Thompson sampling: one draw from each posterior, and the greatest wins, so that what is uncertain gets tried.
        drawn = self._rng.beta(self._alpha, self._beta)
        drawn[~(self._is_open & self._allowed_kinds()[self._kind_of_arm])] = -1
        best = int(drawn.argmax())
        self._counts[self._kind_of_arm[best]] += 1
        return Choice(self.arms[best].form, False)
