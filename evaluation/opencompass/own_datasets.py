"""Benchmarks of the paper's kinds of tasks for which OpenCompass 0.5.4 has no data set, from JSON lines of your own.

Below the folder COMPASS_DATA_CACHE, one row a line:

    data/hotpotqa/test.jsonl       {"question": "…", "answers": ["…", …]}
    data/webquestions/test.jsonl   {"question": "…", "answers": ["…", …]}
    data/cnn_dailymail/test.jsonl  {"article": "…", "highlights": "…"}

OpenCompass's own HotpotQA, in LongBench, gives the passages to read; here the question is asked alone.
"""

from opencompass.datasets import CustomDataset, NQEvaluator
from opencompass.openicl.icl_evaluator import RougeEvaluator
from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

# Scored as OpenCompass does Natural Questions: right if the first line that is generated contains a right answer.
closed_book = [
    {
        "abbr": name,
        "type": CustomDataset,
        "path": f"data/{name}/test.jsonl",
        "local_mode": True,
        "reader_cfg": {"input_columns": ["question"], "output_column": "answers"},
        "infer_cfg": {
            "prompt_template": {"type": PromptTemplate, "template": "Q: {question}\nA:"},
            "retriever": {"type": ZeroRetriever},
            "inferencer": {"type": GenInferencer, "max_out_len": 50},
        },
        "eval_cfg": {"evaluator": {"type": NQEvaluator}},
    }
    for name in ["hotpotqa", "webquestions"]
]

cnn_dailymail = {
    "abbr": "cnn_dailymail",
    "type": CustomDataset,
    "path": "data/cnn_dailymail/test.jsonl",
    "local_mode": True,
    "reader_cfg": {"input_columns": ["article"], "output_column": "highlights"},
    "infer_cfg": {
        "prompt_template": {"type": PromptTemplate, "template": "{article}\nIn short:"},
        "retriever": {"type": ZeroRetriever},
        "inferencer": {"type": GenInferencer, "max_out_len": 128},
    },
    "eval_cfg": {"evaluator": {"type": RougeEvaluator}},
}
