"""What the starter chat learns: that its answers can be told apart, and that what it is judged by was kept from it."""

import random
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from starter.chat import conversations, frames, phrasing, questions, tokens  # noqa: E402


@pytest.fixture(scope="module")
def asked() -> questions.Questions:
    return questions.Questions()


@pytest.fixture(scope="module")
def tokenizer(asked: questions.Questions) -> tokens.Tokenizer:
    return tokens.make_tokenizer(asked, seed=1, conversations=2000)


def test_answer_meets_its_facts_and_no_others(asked: questions.Questions) -> None:
    """Each answer holds the facts of its own intent, and of no other one."""
    for name, intent in asked.intents.items():
        met = [other for other, judge in asked.intents.items() if judge.met_by(intent.answer)]
        assert met == [name]
        assert not questions.is_guide(intent.answer)
    assert questions.is_guide(questions.GUIDE)
    assert not any(intent.met_by(questions.GUIDE) for intent in asked.intents.values())


def test_commands_in_answers_exist(asked: questions.Questions) -> None:
    """Each `serai` command that an answer names is one of the product."""
    from serai.cli.main import app as main

    groups = {group.name: group.typer_instance for group in main.registered_groups}
    alone = {command.name or command.callback.__name__ for command in main.registered_commands if command.callback}
    planned = {"pull", "run", "ps"}  # the specification's, which may be written later than this
    text = " ".join(intent.answer for intent in asked.intents.values())
    named = re.findall(r"`serai (?:--json )?([a-z]+)(?: ([a-z-]+))?", text)
    assert len(named) > 40
    for command, sub in named:
        if command in groups and groups[command] is not None:
            known = {
                one.name or one.callback.__name__.replace("_", "-")
                for one in groups[command].registered_commands
                if one.callback
            }
            assert sub in known, f"serai {command} {sub}"
        else:
            assert command in alone | planned, f"serai {command}"


def test_every_intent_is_judged(asked: questions.Questions) -> None:
    """Each intent has at least three held-out phrasings, and nothing else is held out."""
    held = list(questions.held_out())
    assert {name for name, _ in held} == set(asked.intents)
    for name in asked.intents:
        assert sum(one == name for one, _ in held) >= 3


def test_held_out_is_kept_out(asked: questions.Questions) -> None:
    """No held-out or foreign evaluation question is watched while training, and next to none can be drawn."""
    held = {phrasing.normal(text) for _, text in questions.held_out()}
    foreign = {phrasing.normal(text) for _, text in questions.foreign_evaluation()}
    watched = {phrasing.normal(text) for _, text in questions.development()}
    assert len(foreign) >= 200
    assert not (held | foreign) & watched
    drawn = {
        phrasing.normal(turn.question)
        for conversation in conversations.pool(asked, 5, 0, 20_000)
        for turn in conversation.turns
    }
    assert len(drawn & (held | foreign)) <= 5


def test_pool_is_repeatable(asked: questions.Questions) -> None:
    """A pool depends on its seed and number alone."""
    first = conversations.pool(asked, 5, 3, 50)
    assert conversations.pool(asked, 5, 3, 50) == first
    assert conversations.pool(asked, 5, 4, 50) != first
    assert conversations.pool(questions.Questions(), 5, 3, 50) == first


def test_patterns_are_spelled_out(asked: questions.Questions) -> None:
    """A question that was drawn holds no sign of the pattern language, and is never empty."""
    rng = random.Random(7)
    for intent in asked.intents.values():
        for _ in range(30):
            text = asked.of_intent(rng, intent)
            assert text.strip()
            assert not set(text) & set("|{}")
            assert not re.search(r"<[a-z_]+>", text)


@pytest.mark.parametrize(
    ("verb", "third", "gerund", "participle"),
    [
        ("list", "lists", "listing", "listed"),
        ("stop", "stops", "stopping", "stopped"),
        ("delete", "deletes", "deleting", "deleted"),
        ("modify", "modifies", "modifying", "modified"),
        ("watch", "watches", "watching", "watched"),
        ("make", "makes", "making", "made"),
    ],
)
def test_verbs_are_inflected(verb: str, third: str, gerund: str, participle: str) -> None:
    """A verb takes its regular and irregular forms."""
    assert frames.third_person(verb) == third
    assert frames.gerund(verb) == gerund
    assert frames.participle(verb) == participle


def test_typo_is_one_slip() -> None:
    """A typo changes the length of a word by at most one and keeps its first letter."""
    rng = random.Random(3)
    for _ in range(300):
        wrong = phrasing.typo("version", rng)
        assert abs(len(wrong) - 7) <= 1
        assert wrong[0] == "v"


def test_encoder_equals_template(tokenizer: tokens.Tokenizer, tmp_path: Path) -> None:
    """Training sees the very tokens that the chat template makes, and learns the answers with their ends alone."""
    transformers = pytest.importorskip("transformers")
    tokens.save_tokenizer(tokenizer, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns = (
        conversations.Turn(question=" What's `GET /ps`? ", answer="It shows\nwhat is loaded."),
        conversations.Turn(question="سلام 🙂", answer=questions.GUIDE, intent="foreign"),
    )
    sample = tokens.Encoder(tokenizer).encode(conversations.Conversation(system="Be short.", turns=turns))
    messages = [{"role": "system", "content": "Be short."}]
    for turn in turns:
        messages += [
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        ]
    assert loaded.apply_chat_template(messages, return_dict=False) == sample.ids
    learned = tokenizer.decode([one for one, told in zip(sample.ids, sample.learned, strict=True) if told])
    assert learned.replace(tokens.END, "") == turns[0].answer + turns[1].answer
    asked = loaded.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert sample.asked == [(len(asked) - 1, "foreign")]
