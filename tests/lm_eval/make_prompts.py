#!/usr/bin/env python3
"""Writes tests/evaluate/fixtures/prompts.json: invented rows of each task, and the requests that lm-eval makes of them.

Examples are drawn from nearly as few rows as are asked for, and in tasks without a test split the scored row is one of them, so that what
lm-eval does about that is seen. needs: pip install lm-eval==0.4.13; run by hand after a change to the rows below.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import lm_eval
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

OUTPUT = Path(__file__).parents[1] / "evaluate" / "fixtures" / "prompts.json"
ASKED = [(0, False, False), (3, False, False), (0, True, False), (2, True, False), (2, True, True)]  # shots, chat, multiturn
SEED = 7


def arc(question, texts, key, labels="ABCDE"):
    return {"id": "x", "question": question, "choices": {"text": texts, "label": list(labels[: len(texts)])}, "answerKey": key}


ROWS = {
    "arc_easy": {
        "test": [arc("What does a kettle boil?", ["stone", "water", "light"], "B")],
        "train": [arc(f"Which number follows {i}?", [str(i), str(i + 1), f"{i} and a half"], "B") for i in range(30)],
    },
    "arc_challenge": {
        "test": [arc('Why does "bread" rise?\nThink.', ["It's yeast", "it isn't", '"heat"', "'air'"], "4", "1234")],
        "train": [arc(f"Is {i} even?", ["yes", "no"], "AB"[i % 2]) for i in range(8)],
    },
    "openbookqa": {
        "test": [
            {
                "id": "y",
                "question_stem": "A lamp needs",
                "choices": {"text": ["power", "rain"], "label": ["A", "B"]},
                "answerKey": " A",
            }
        ],
        "train": [
            {
                "id": str(i),
                "question_stem": f"Tree {i} grows",
                "choices": {"text": ["up", "down"], "label": ["A", "B"]},
                "answerKey": "A",
            }
            for i in range(25)
        ],
    },
    "boolq": {
        "validation": [
            {"question": "is the river wide", "passage": "The river is wide. Its stones are old.", "label": 1, "idx": 0}
        ],
        "train": [
            {"question": f"is row {i} here", "passage": f"Row {i} stands here.", "label": i % 2, "idx": i} for i in range(6)
        ],
    },
    "hellaswag": {
        "validation": [
            {
                "ind": 1,
                "activity_label": "Baking bread",
                "ctx_a": "[header] How to bake bread [title] Heat  the oven.",
                "ctx_b": "the Oven, ÉTÉ",
                "ctx": "",
                "endings": ["is [substeps] hot now.", "[step] sings   a song.", " stays cold [broken.", "turns [a [b] c] round."],
                "label": "3",
                "source_id": "",
                "split": "",
                "split_type": "",
            }
        ],
        "train": [
            {
                "ind": i,
                "activity_label": f"Walk {i}",
                "ctx_a": f"A man walks {i} times.",
                "ctx_b": "he",
                "ctx": "",
                "endings": ["stops.", "runs.", "sits.", "eats."],
                "label": str(i % 4),
                "source_id": "",
                "split": "",
                "split_type": "",
            }
            for i in range(12)
        ],
    },
    "piqa": {
        "validation": [
            {"goal": "keep bread fresh", "sol1": "put it into a bag ", "sol2": 'put it\'s crust "outside"', "label": 1}
        ],
        "train": [{"goal": f"goal {i}", "sol1": f"first {i}", "sol2": f"second {i}", "label": i % 2} for i in range(40)],
    },
    "social_iqa": {
        "validation": [
            {
                "context": "Ada gave Bo a book.",
                "question": "How does Bo feel?",
                "answerA": "glad",
                "answerB": "sold",
                "answerC": "tall",
                "label": "1",
            }
        ],
        "train": [
            {
                "context": f"Person {i} ran.",
                "question": "Why?",
                "answerA": "late",
                "answerB": "fun",
                "answerC": "rain",
                "label": str(1 + i % 3),
            }
            for i in range(7)
        ],
    },
    "winogrande": {
        "validation": [
            {
                "sentence": "The cup did not fit the box because the _ was too big.",
                "option1": "cup",
                "option2": "box",
                "answer": "1",
            }
        ],
        "train": [
            {
                "sentence": f"Room {i} was near door {i}, so _ was shut. ",
                "option1": "the room",
                "option2": "the door",
                "answer": str(1 + i % 2),
            }
            for i in range(9)
        ],
    },
}


class Listener(LM):
    """Answers nothing of use; its chat template is the one of prompts_test.cpp."""

    tokenizer_name = "none"

    def loglikelihood(self, requests):
        return [(-1.0, False) for _ in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError

    def apply_chat_template(self, messages, add_generation_prompt=True):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>" * add_generation_prompt


def download(self, *_, **__):
    parts = ROWS[self.config.task]
    scored = parts.get("test", parts.get("validation"))
    self.dataset = {split: datasets.Dataset.from_list(parts.get(split, scored)) for split in ("train", "validation", "test")}


def questions(task, shots, chat, multiturn):
    found = lm_eval.simple_evaluate(
        Listener(),
        tasks=[task],
        num_fewshot=shots,
        apply_chat_template=chat,
        fewshot_as_multiturn=multiturn,
        fewshot_random_seed=SEED,
    )
    return [
        list(map(list, sample["arguments"])) for sample in sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    ]


def text(value):
    return json.dumps(value, ensure_ascii=False)


def main():
    ConfigurableTask.download = download
    tasks = []
    for task, parts in ROWS.items():
        scored = "test" if "test" in parts else "validation"
        if scored == "validation":
            parts["train"][2] = dict(parts[scored][0])
        parts[scored].append(parts["train"][4])
        rows = ",\n   ".join(f"{text(split)}: [\n    " + ",\n    ".join(map(text, part)) + "]" for split, part in parts.items())
        asked = []
        for shots, chat, multiturn in ASKED:
            head = text({"shots": shots, "chat": chat, "multiturn": multiturn})[:-1]
            asked.append(
                head + ', "questions": [\n    ' + ",\n    ".join(map(text, questions(task, shots, chat, multiturn))) + "]}"
            )
        tasks.append(f' {text(task)}: {{\n  "rows": {{\n   {rows}}},\n  "asked": [\n   ' + ",\n   ".join(asked) + "]}")
    OUTPUT.write_text("{\n" + ",\n".join(tasks) + "\n}\n")


if __name__ == "__main__":
    main()
