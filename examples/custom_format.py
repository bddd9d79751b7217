r"""Data in a format of one's own: here lines "question<TAB>answer". Samples are messages with a task type.

printf 'What is 2 + 2?\t4\n' > /tmp/questions.tsv
PYTHONPATH=. python examples/custom_format.py /tmp/questions.tsv --base_model data/tiny_llama \
        --dataset_dir data/tiny_data/train --max_seq_length 128 --max_steps 20 --output_dir output/custom_format
"""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer

from loramoe.data import get_template
from loramoe.training import parse, run_sft


def read_tsv(file: Path, base_model: str, task_type: int = 1) -> Dataset:
    """Tokenises a file of questions and answers with the template `release`."""
    template = get_template("release", AutoTokenizer.from_pretrained(base_model))
    pairs = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    encoded = template.encode(turns)
    return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels, "task_types": task_type} for e in encoded])


if __name__ == "__main__":
    arguments = parse(sys.argv[2:])
    run_sft(arguments, train_dataset=read_tsv(Path(sys.argv[1]), arguments[0].base_model))
