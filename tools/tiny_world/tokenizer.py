"""Train the sentencepiece tokenizer of the tiny model, and write the same tokenizer in the form of `tokenizers`.

Options, special tokens and the form of `tokenizer.json` are those of Llama 2, so that what works here works there.
One thing is added: a `<pad>` token of its own, so that padding is never mistaken for the end of a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

VOCABULARY = 2048  # 4 special tokens, 256 bytes, and what is left for pieces of words
CONTEXT = 256  # positions of the model
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
UNK, BOS, EOS, PAD = range(4)  # their ids

# `<s>` question `</s>` answer `</s>`: the form of the fine-tuning rows. A system message is one more part in front.
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Train a byte-pair tokenizer on `texts`; write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        pad_piece="<pad>",
        num_threads=1,
        minloglevel=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    fast_tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())).save(
        str(folder / "tokenizer.json")
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n", encoding="utf-8")


def fast_tokenizer(pieces: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """Return the tokenizer of the `tokenizers` library that gives the ids that `pieces` gives, with `<s>` in front."""
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    bpe = models.BPE(vocabulary, merges(vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS.values()])
    return tokenizer


def merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return the merges of a byte-pair vocabulary, first to last.

    Sentencepiece stores no merges: it joins any two neighbours that make a piece, the piece with the lowest id first.
    """
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(vocabulary, key=vocabulary.__getitem__)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]


def tokenizer_config() -> dict[str, object]:
    """Return `tokenizer_config.json`, readable by transformers 4 and 5."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
