"""The glossary fixes the words, and the code uses them."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "serai"

FIXED = {
    "model", "version", "service", "binding", "candidate", "decision", "lease", "engine", "worker", "job", "event",
    "avatar", "face track", "alias", "card", "revision", "fallback chain", "traffic split", "caller", "task", "seam",
    "hub", "blob", "runner", "dialect", "capability", "resident unit", "footprint", "cooldown", "scheduler", "arbiter",
    "backend", "draft", "active", "deprecated", "retired", "tombstone", "impact", "pinned", "immutable", "audit log",
    "viewer", "user", "moderator", "admin",
}  # fmt: skip


def rows() -> list[tuple[str, str, tuple[str, ...]]]:
    """Return word, meaning and the words that are not used for it, as the table has them."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "glossary.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    return [(word, meaning, tuple(other.split(", ")) if other else ()) for word, meaning, other in cells[1:]]


def words_of(name: str) -> set[str]:
    """Return the words of an identifier: `load_ModelCard` → load, model, card."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_the_words_that_the_design_fixes_have_an_entry() -> None:
    """Nobody has to guess what a word of the architecture means."""
    assert FIXED - {word for word, _, _ in rows()} == set()


def test_entries_are_in_order_and_say_something() -> None:
    """A word is found by its place, stands once, and has one line of meaning."""
    words = [word for word, _, _ in rows()]
    assert words == sorted(set(words))
    assert [word for word, meaning, _ in rows() if len(meaning) < 15 or meaning.endswith(".")] == []


def test_a_word_is_not_both_used_and_avoided() -> None:
    """The last column forbids no word that the first one defines."""
    avoided = [other for _, _, others in rows() for other in others]
    assert avoided
    assert set(avoided) & {word for word, _, _ in rows()} == set()


def test_the_code_uses_the_words_of_the_glossary() -> None:
    """No class, function or module is named by a word for which there is another one."""
    avoided = {other for _, _, others in rows() for other in others}
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    wrong = [
        f"{path.relative_to(PACKAGE).as_posix()}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in (path.stem, *(n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, definitions)))
        if words_of(name) & avoided
    ]
    assert wrong == []


def test_words_are_found_in_identifiers() -> None:
    """The check above sees a word inside a name, and no word in the middle of another."""
    assert words_of("load_PersonaCard") == {"load", "persona", "card"}
    assert words_of("HTTPTicket") >= {"ticket"}
    assert "dao" not in words_of("daoist")
