"""The built-in task `reviews`: sentiment of sentences that a grammar writes from a seed.

A sentence is one clause, or two of opposite sentiment of which the main clause decides:
"Although the battery is superb, the screen is anything but sharp." is negative. A clause states
its sentiment outright, or through a negation, a litotes or a double negation, so that the words
alone do not tell the label. The grammar and the word lists are this project's own.
"""

import random
from dataclasses import dataclass

from datasets import Dataset

from analog_grasp.tasks.classification import SentenceTask


@dataclass(frozen=True)
class _Domain:
    """What one kind of review speaks of, and the adjectives that belong to it alone."""

    aspects: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _domain(aspects: str, good: str, bad: str) -> _Domain:
    return _Domain(_words(aspects), _words(good), _words(bad))


_DOMAINS = (
    _domain(
        "film plot acting script ending dialogue soundtrack cast",
        "gripping moving witty thrilling hilarious",
        "predictable tedious clumsy contrived lifeless",
    ),
    _domain(
        "food soup dessert menu service wine bread steak",
        "delicious tasty fresh tender flavourful",
        "bland stale greasy soggy tasteless",
    ),
    _domain(
        "phone screen battery camera keyboard speaker design charger",
        "reliable fast sturdy elegant sharp",
        "faulty slow flimsy ugly sluggish",
    ),
    _domain(
        "hotel room bed breakfast pool lobby view staff",
        "comfortable clean cosy friendly spotless",
        "dirty noisy shabby rude filthy",
    ),
    _domain(
        "book story prose hero opening chapter style narrator",
        "captivating clever touching vivid insightful",
        "confusing shallow dreary tiresome pretentious",
    ),
    _domain(
        "concert band singer sound show stage drummer venue",
        "electric lively soulful dazzling energetic",
        "sloppy deafening listless amateurish cramped",
    ),
    _domain(
        "course teacher lesson textbook lecture homework exam tutor",
        "clear helpful inspiring engaging useful",
        "boring muddled useless chaotic outdated",
    ),
    _domain(
        "car engine seat brake gearbox dashboard steering heater",
        "smooth responsive quiet robust safe",
        "rusty wobbly unreliable clunky dangerous",
    ),
)
_GOOD = _words(
    "good great excellent superb wonderful brilliant fantastic impressive "
    "lovely delightful outstanding terrific splendid charming marvellous"
)
_BAD = _words(
    "bad poor awful terrible dreadful horrible disappointing mediocre "
    "lousy dismal shoddy pathetic appalling miserable abysmal"
)
_INTENSIFIERS = ("very", "really", "truly", "quite", "simply", "utterly")
_NEGATIONS = (
    "not", "never", "hardly", "not at all", "far from", "anything but", "by no means",
)  # fmt: skip

# A clause is written from an aspect, "is" or "was", an adjective of the clause's own sentiment
# and one of the opposite sentiment.
_PLAIN = (
    "the {aspect} {be} {same}",
    "the {aspect} {be} {very} {same}",
    "I found the {aspect} {same}",
)
_NEGATED = (
    "the {aspect} {be} {neg} {opposite}",
    "nobody would call the {aspect} {opposite}",
    "I did not find the {aspect} {opposite}",
)
_DOUBLED = (
    "the {aspect} could not be more {same}",
    "the {aspect} could not be less {opposite}",
    "nobody denies the {aspect} {be} {same}",
)
_CLAUSES = (_PLAIN, _NEGATED, _DOUBLED)
_CLAUSE_WEIGHTS = (0.6, 0.28, 0.12)

# `main` decides the label; `side`, or the other adjective and aspect, say the opposite.
_SINGLE = "{main}"
_CONTRASTS = (
    "{side}, but {main}",
    "although {side}, {main}",
    "{main}, although {side}",
    "{main} despite the {adjective} {other}",
    "despite the {adjective} {other}, {main}",
)
_CONTRAST_SHARE = 0.34
_HELD_OUT = 5  # One in so many is held out of training.
_MOST = 20_000


def reviews(train: int = 2000, validation: int = 200, seed: int = 0) -> SentenceTask:
    """The task `reviews`: is the sentence's sentiment negative (0) or positive (1)?

    Both splits are balanced, to one sentence, and no sentence occurs twice. One adjective in five
    and one (domain, contrast) pair in five occur in validation only, so that it asks for more
    than what can be learned by heart. The validation split depends on its own size and the seed
    alone; a smaller training split is the beginning of a larger one.

    Args:
        train: the number of training sentences.
        validation: the number of validation sentences.
        seed: of both.

    Raises:
        ValueError: a size is outside 1 to 20,000, where the language would begin to run dry.

    Example:
        >>> task = reviews(train=4, validation=2)
        >>> task.train["label"][:]
        [0, 1, 0, 1]
    """
    for split, size in (("training", train), ("validation", validation)):
        if not 1 <= size <= _MOST:
            raise ValueError(
                f"The task 'reviews' was asked for {size} {split} sentences; it should be from 1 "
                f"to {_MOST}."
            )
    # Seeding with a string is stable between versions of Python, and between platforms.
    measured = _distinct(random.Random(f"reviews validation {seed}"), validation, set(), whole=True)
    learned = _distinct(random.Random(f"reviews train {seed}"), train, set(measured), whole=False)
    return SentenceTask(
        "reviews", _rows(learned), _rows(measured), ("negative", "positive"), ("accuracy",)
    )


def _rows(sentences: list[str]) -> Dataset:
    return Dataset.from_dict(
        {"text": sentences, "label": [index % 2 for index in range(len(sentences))]}
    )


def _distinct(rng: random.Random, count: int, taken: set[str], whole: bool) -> list[str]:
    """`count` sentences outside `taken`, negative and positive by turns."""
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        sentence = _sentence(rng, len(sentences) % 2, whole)
        if sentence not in taken:
            sentences[sentence] = None
    return list(sentences)


def _sentence(rng: random.Random, label: int, whole: bool) -> str:
    """One sentence of the whole language, or of what training may see of it."""
    domain = rng.choice(_DOMAINS)
    aspect, other = rng.sample(domain.aspects, 2)
    contrasts = _seen(_CONTRASTS, whole, _DOMAINS.index(domain))
    frame = rng.choice(contrasts) if rng.random() < _CONTRAST_SHARE else _SINGLE
    sentence = frame.format(
        main=_clause(rng, domain, aspect, label, whole),
        side=_clause(rng, domain, other, 1 - label, whole),
        adjective=rng.choice(_adjectives(domain, 1 - label, whole)),
        other=other,
    )
    return sentence[0].upper() + sentence[1:] + "."


def _clause(rng: random.Random, domain: _Domain, aspect: str, label: int, whole: bool) -> str:
    (templates,) = rng.choices(_CLAUSES, _CLAUSE_WEIGHTS)
    return rng.choice(templates).format(
        aspect=aspect,
        be=rng.choice(("is", "was")),
        very=rng.choice(_INTENSIFIERS),
        neg=rng.choice(_NEGATIONS),
        same=rng.choice(_adjectives(domain, label, whole)),
        opposite=rng.choice(_adjectives(domain, 1 - label, whole)),
    )


def _adjectives(domain: _Domain, label: int, whole: bool) -> tuple[str, ...]:
    common, own = (_GOOD, domain.good) if label else (_BAD, domain.bad)
    return _seen(common, whole) + _seen(own, whole)


def _seen(choices: tuple[str, ...], whole: bool, shift: int = 0) -> tuple[str, ...]:
    """`choices` without the held-out ones, or the `whole` of them."""
    return tuple(choice for i, choice in enumerate(choices) if whole or (i + shift + 1) % _HELD_OUT)
