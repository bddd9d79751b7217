"""Four small data sets about the world of data/tiny_llama, two by perplexity and two by generation: see make_rows.py.

Prompts of tasks have the form of the training rows: question, end-of-text token, answer. OpenCompass puts the
beginning-of-text token in front, and the tokenizer reads "</s>" as one token, so the model sees what it was trained on.
"""

import os

from opencompass.datasets import CustomDataset
from opencompass.openicl.icl_evaluator import AccEvaluator, EMEvaluator
from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

# An absolute path: OpenCompass looks for a relative one in COMPASS_DATA_CACHE.
folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")


def by_perplexity(abbr, file, columns, template):
    """The option whose whole text has the lowest perplexity is the answer."""
    return {
        "abbr": abbr,
        "type": CustomDataset,
        "path": os.path.join(folder, file),
        "reader_cfg": {"input_columns": columns, "output_column": "answer"},
        "infer_cfg": {
            "prompt_template": {"type": PromptTemplate, "template": template},
            "retriever": {"type": ZeroRetriever},
            "inferencer": {"type": PPLInferencer},
        },
        "eval_cfg": {"evaluator": {"type": AccEvaluator}},
    }


def by_generation(abbr, file, columns, template):
    """The answer is generated; up to its first full stop it must be one of the right ones."""
    return {
        "abbr": abbr,
        "type": CustomDataset,
        "path": os.path.join(folder, file),
        "reader_cfg": {"input_columns": columns, "output_column": "answers"},
        "infer_cfg": {
            "prompt_template": {"type": PromptTemplate, "template": template},
            "retriever": {"type": ZeroRetriever},
            "inferencer": {"type": GenInferencer, "max_out_len": 12},
        },
        "eval_cfg": {"evaluator": {"type": EMEvaluator}},
    }


endings = {letter: "{prompt} {" + letter + "}." for letter in ["A", "B", "C", "D"]}
sentiments = {label: "{text}</s>" + label for label in ["positive", "negative"]}

tiny_datasets = [
    by_perplexity("facts_ppl", "facts.jsonl", ["prompt", "A", "B", "C", "D"], endings),
    by_generation("facts_gen", "facts.jsonl", ["prompt"], "{prompt}"),
    by_perplexity("sentiment_ppl", "sentiment.jsonl", ["text"], sentiments),
    by_generation("topic_gen", "topic.jsonl", ["text"], "{text}</s>"),
]
