"""What transformers' own `generate` says, in a process of its own: the truth that the engines are held against."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.llm_models import child_environment


def greedy_texts(folders: Sequence[Path], prompts: Sequence[str], max_tokens: int) -> list[list[tuple[str, int]]]:
    """Return the text and the number of tokens with which each model answers each prompt, always the likeliest."""
    asked = json.dumps({"folders": [str(folder) for folder in folders], "prompts": prompts, "max_tokens": max_tokens})
    command = [sys.executable, "-m", "support.llm_reference", asked]
    done = subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [[(text, count) for text, count in answers] for answers in json.loads(done.stdout.splitlines()[-1])]


def _answers(folder: str, prompts: Sequence[str], max_tokens: int) -> list[tuple[str, int]]:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
        with torch.inference_mode():
            made = model.generate(ids, max_new_tokens=max_tokens, do_sample=False)[0, ids.shape[1] :].tolist()
        answers.append((tokenizer.decode(made, skip_special_tokens=True), len(made)))
    return answers


if __name__ == "__main__":
    _asked = json.loads(sys.argv[1])
    json.dump([_answers(folder, _asked["prompts"], _asked["max_tokens"]) for folder in _asked["folders"]], sys.stdout)
