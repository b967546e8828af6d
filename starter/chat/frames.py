"""Says a wish in another grammatical frame.

"list the models" becomes "which command lists the models", "how can the models be listed", "is there a way of listing
the models".
"""

import random

_S_ENDINGS = ("s", "sh", "ch", "x", "z", "o")
_VOWELS = "aeiou"
_DOUBLED = frozenset(
    ("stop", "shut", "run", "get", "set", "put", "cut", "drop", "let", "begin", "pin", "submit", "quit", "plan", "drag",
     "swim", "split", "log", "skip", "map", "chat", "hit")
)  # fmt: skip
_PARTICLES = frozenset(("up", "down", "off", "out", "back", "on", "rid", "in", "away", "over", "again"))
_ARTICLES = frozenset(("a", "an", "the", "my", "this", "that", "our", "all", "another"))
_PARTICIPLES = {
    "make": "made", "find": "found", "set": "set", "run": "run", "put": "put", "shut": "shut", "bring": "brought",
    "write": "written", "send": "sent", "give": "given", "take": "taken", "keep": "kept", "begin": "begun",
    "build": "built", "read": "read", "see": "seen", "show": "shown", "undo": "undone", "split": "split", "get": "got",
    "hold": "held", "throw": "thrown", "freeze": "frozen", "choose": "chosen", "cut": "cut", "draw": "drawn",
    "withdraw": "withdrawn", "eat": "eaten", "drink": "drunk", "drive": "driven", "sell": "sold", "buy": "bought",
    "steal": "stolen", "catch": "caught", "hit": "hit", "teach": "taught", "break": "broken", "speak": "spoken",
    "grow": "grown", "feed": "fed", "hide": "hidden", "forget": "forgotten", "lose": "lost", "sing": "sung",
    "redo": "redone",
    "overclock": "overclocked", "let": "let", "know": "known", "tell": "told", "have": "had",
    "ride": "ridden", "spin": "spun",
}  # fmt: skip
_THIRD = (
    "which command {}", "what {}", "is there a command that {}", "which call {}", "tell me what {}",
    "i need the command that {}",
    "which route {}", "something that {}", "i look for the command that {}", "the command which {}",
    "is there anything that {}",
    "what command {}", "which endpoint {}", "name the command that {}", "which request {}",
)  # fmt: skip
_GERUND = (
    "is there a way of {}", "the way of {}", "i have trouble {}", "i need advice on {}", "what's the procedure for {}",
    "any tips for {}", "i am interested in {}", "what about {}", "how about {}", "how does {} work", "{}",
    "what does {} take",
    "i am thinking of {}", "is {} possible", "the docs on {}", "a word on {}, please",
    "i was told that {} is easy, how",
    "i wonder about {}", "what are the steps for {}", "how complicated is {}",
)  # fmt: skip
_PASSIVE = (
    "how is {} {}", "how can {} be {}", "can {} be {}", "how does {} get {}", "i want {} {}", "i want {} to be {}",
    "{} must be {}", "{} should be {}", "{} needs to be {}", "how should {} be {}", "is it possible that {} is {}",
    "when is {} {}",
    "i need {} {}", "by which command is {} {}", "how will {} be {}", "must {} be {}", "{} has to get {}, how",
)  # fmt: skip


def third_person(verb: str) -> str:
    """Return `verb` as he, she or it does it."""
    if verb == "have":
        return "has"
    if verb.endswith("y") and verb[-2:-1] not in _VOWELS:
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(_S_ENDINGS) else "s")


def gerund(verb: str) -> str:
    """Return the form in -ing."""
    if verb in _DOUBLED:
        return verb + verb[-1] + "ing"
    if verb.endswith("e") and not verb.endswith(("ee", "oe")):
        return verb[:-1] + "ing"
    return verb + "ing"


def participle(verb: str) -> str:
    """Return the past participle."""
    if verb in _PARTICIPLES:
        return _PARTICIPLES[verb]
    if verb in _DOUBLED:
        return verb + verb[-1] + "ed"
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2:-1] not in _VOWELS:
        return verb[:-1] + "ied"
    return verb + "ed"


def reframe(wish: str, rng: random.Random) -> str | None:
    """Return a wish, which begins with its verb, in another frame; None where the frame does not fit."""
    verb, _, rest = wish.partition(" ")
    if not verb.isalpha() or not rest:
        return None
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(_THIRD).format(f"{third_person(verb)} {rest}")
    if kind < 0.6:
        return rng.choice(_GERUND).format(f"{gerund(verb)} {rest}")
    return _passive(verb, rest.split(" "), rng)


def _passive(verb: str, rest: list[str], rng: random.Random) -> str | None:
    done = participle(verb)
    if rest[0] in _PARTICLES:
        done += f" {rest.pop(0)}"
    if not rest or rest[0] not in _ARTICLES:
        return None
    return rng.choice(_PASSIVE).format(" ".join(rest), done)
