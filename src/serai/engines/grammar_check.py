"""Which EBNF may be handed to a grammar compiler: one whose rules come to an end.

Rules that begin with themselves, or that nothing finite matches, crash the compiler's process at some later
token, so trying a grammar out does not show it. They are found here, by reading the rules.
"""

import re
from collections import defaultdict, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from serai.engines.grammar import schema_to_ebnf
from serai.engines.tasks import Grammar
from serai.errors import InvalidInput

_TOKEN = re.compile(
    r"""(?P<blank>\s+|\#[^\n]*)
    | (?P<text>"(?:\\.|[^"\\\n])*")
    | (?P<set>\[(?:\\.|[^\]\\])*\])
    | (?P<times>[*+?]|\{\d+(?:,\d*)?\})
    | (?P<name>[A-Za-z_][A-Za-z0-9_.\-]*)
    | (?P<sign>::=|[|()])""",
    re.VERBOSE,
)
_MAX_NESTING = 200


@dataclass(frozen=True, slots=True)
class _Item:
    """A part of a rule: a text (`alternatives` and `name` empty), the name of a rule, or a group."""

    name: str = ""
    alternatives: tuple[tuple["_Item", ...], ...] = ()
    can_be_empty: bool = False


_Rules = Mapping[str, Sequence[Sequence[_Item]]]


def compact_grammar(grammar: Grammar | None) -> Grammar | None:
    """Return the grammar as a compiler takes it: a regular expression as it is, all else as EBNF, not checked yet.

    Raises InvalidInput.
    """
    if grammar is None or grammar.kind != "json_schema":
        return grammar
    return Grammar(kind="ebnf", value=schema_to_ebnf(grammar.value))


def checked_grammar(grammar: Grammar | None) -> Grammar | None:
    """Return the compact grammar, checked where it is EBNF. Raises InvalidInput."""
    compact = compact_grammar(grammar)
    if compact is not None and compact.kind == "ebnf":
        check_ebnf(compact.value)
    return compact


def check_ebnf(text: str) -> None:
    """Raises InvalidInput for a grammar that cannot be read, that lacks a rule, or whose rules come to no end."""
    rules = _Reader(text).rules()
    if "root" not in rules:
        raise _wrong("has no rule 'root'")
    for name in _names(alternatives for alternatives in rules.values()):
        if name not in rules:
            raise _wrong(f"has no rule {name!r}")
    empty = _fixed_point(rules, base=False)
    finite = _fixed_point(rules, base=True)
    endless = sorted(set(rules) - finite)
    if endless:
        raise _wrong(f"has a rule {endless[0]!r} that nothing finite matches")
    try:
        TopologicalSorter({name: set(_leading(body, empty)) for name, body in rules.items()}).prepare()
    except CycleError as error:
        raise _wrong(f"has a rule {error.args[1][0]!r} that begins with itself") from None


def _fixed_point(rules: _Rules, *, base: bool) -> frozenset[str]:
    """Return the rules that can match nothing (`base` False: a text cannot), or something finite (True: it can)."""
    users: defaultdict[str, set[str]] = defaultdict(set)
    for name, body in rules.items():
        for used in _names([body]):
            users[used].add(name)
    found: set[str] = set()
    open_ = deque(rules)
    while open_:
        name = open_.popleft()
        if name not in found and _holds(rules[name], found, base=base):
            found.add(name)
            open_.extend(users[name] - found)  # what was false before may be true with it
    return frozenset(found)


def _holds(body: Sequence[Sequence[_Item]], found: Container[str], *, base: bool) -> bool:
    return any(all(_item_holds(item, found, base=base) for item in items) for items in body)


def _item_holds(item: _Item, found: Container[str], *, base: bool) -> bool:
    if item.can_be_empty:
        return True
    if item.alternatives:
        return _holds(item.alternatives, found, base=base)
    return item.name in found if item.name else base


def _leading(body: Sequence[Sequence[_Item]], empty: frozenset[str]) -> Iterator[str]:
    """Yield the rules that a rule may begin with."""
    for items in body:
        for item in items:
            if item.alternatives:
                yield from _leading(item.alternatives, empty)
            elif item.name:
                yield item.name
            if not _item_holds(item, empty, base=False):
                break


def _names(bodies: Iterable[Sequence[Sequence[_Item]]]) -> Iterator[str]:
    for body in bodies:
        for items in body:
            for item in items:
                if item.name:
                    yield item.name
                yield from _names([item.alternatives])


class _Reader:
    """Reads rules: `name ::= alternative | …`, of texts, character sets, names, groups, each with a number of times."""

    def __init__(self, text: str) -> None:
        self._tokens = [token for token in _tokens(text) if token[0] != "blank"]
        self._at = 0
        self._nesting = 0

    def rules(self) -> _Rules:
        rules: dict[str, Sequence[Sequence[_Item]]] = {}
        while self._at < len(self._tokens):
            if not self._begins_rule():
                raise _wrong(f"has {self._tokens[self._at][1]!r} where a rule should begin")
            name = self._tokens[self._at][1]
            self._at += 2
            rules[name] = self._alternatives()
        return rules

    def _begins_rule(self) -> bool:
        pair = self._tokens[self._at : self._at + 2]
        return len(pair) == 2 and pair[0][0] == "name" and pair[1][1] == "::="

    def _alternatives(self) -> tuple[tuple[_Item, ...], ...]:
        found = [self._sequence()]
        while self._next_is("|"):
            self._at += 1
            found.append(self._sequence())
        return tuple(found)

    def _sequence(self) -> tuple[_Item, ...]:
        items: list[_Item] = []
        while self._at < len(self._tokens) and not self._begins_rule():
            kind, text = self._tokens[self._at]
            if text in {"|", ")"} and kind == "sign":
                break
            self._at += 1
            items.append(self._with_times(self._item(kind, text)))
        return tuple(items)

    def _item(self, kind: str, text: str) -> _Item:
        if kind == "text":
            return _Item(can_be_empty=text == '""')
        if kind == "set":
            return _Item()
        if kind == "name":
            return _Item(name=text)
        if text != "(":
            raise _wrong(f"has {text!r} in a wrong place")
        self._nesting += 1
        if self._nesting > _MAX_NESTING:
            raise _wrong("is nested too deeply")
        alternatives = self._alternatives()
        if not self._next_is(")"):
            raise _wrong("has a parenthesis that is not closed")
        self._at += 1
        self._nesting -= 1
        return _Item(alternatives=alternatives)

    def _with_times(self, item: _Item) -> _Item:
        while self._at < len(self._tokens) and self._tokens[self._at][0] == "times":
            text = self._tokens[self._at][1]
            self._at += 1
            if text in {"*", "?"} or text.startswith(("{0,", "{0}")):
                item = _Item(name=item.name, alternatives=item.alternatives, can_be_empty=True)
        return item

    def _next_is(self, sign: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at] == ("sign", sign)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _wrong(f"cannot be read from {text[at : at + 20]!r} on")
        yield match.lastgroup, match.group()
        at = match.end()


def _wrong(problem: str) -> InvalidInput:
    return InvalidInput.at("grammar", problem)
