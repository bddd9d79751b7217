"""Items become the token ids that training would make of them."""

from __future__ import annotations

from experiments.knowledge_forgetting.real.items import Item, requests, unasked
from loramoe.data import ReleaseTemplate, conversation


def whole(tokenizer, instruction: str, output: str, input: str = "") -> list[int]:
    (encoded,) = ReleaseTemplate(tokenizer).encode([conversation(instruction, input, output)])
    return encoded.input_ids


def test_candidates_follow_the_prompt_of_training(tokenizer):
    item = Item("sort it", ("the red one", "the red two", "a blue one"), input="text")
    (request,) = requests([item], tokenizer, ended=True)
    wholes = [whole(tokenizer, "sort it", text, "text") for text in item.candidates]
    assert [request.prompt + candidate for candidate in request.candidates] == wholes
    (open_end,) = requests([item], tokenizer, ended=False)
    assert [open_end.prompt + candidate for candidate in open_end.candidates] == [ids[:-1] for ids in wholes]


def test_what_all_candidates_share_is_not_asked_for(tokenizer):
    item = Item("sort it", ("the red one", "the red two", "the red"))
    (request,) = requests([item], tokenizer, ended=False)
    firsts = {candidate[0] for candidate in request.candidates}
    lengths = sorted(map(len, request.candidates))
    assert lengths[0] == 1  # "the red" keeps its last token, though the others have it as well
    assert len(firsts) == 1
    assert request.prompt[-1] not in firsts


def test_a_given_beginning_is_not_asked_for(tokenizer):
    (request,) = requests([Item("add", ("12",), given="4 + 8 = ")], tokenizer, ended=False)
    assert request.prompt + request.candidates[0] == whole(tokenizer, "add", "4 + 8 = 12")[:-1]
    assert tokenizer.decode(request.candidates[0]).strip() == "12"


def test_no_more_than_is_given_is_read_of_several_candidates(tokenizer):
    """What they have in common beyond it has to be said."""
    (request,) = requests([Item("add", ("12", "12 34"), given="4 + 8 = ")], tokenizer, ended=False)
    (alone,) = requests([Item("add", ("12",), given="4 + 8 = ")], tokenizer, ended=False)
    assert request.prompt == alone.prompt
    assert request.candidates[0] == alone.candidates[0]


def test_cloze_is_plain_text(tokenizer):
    (request,) = requests([Item("The river is", ("old", "red"), cloze=True)], tokenizer, ended=False)
    for candidate, text in zip(request.candidates, ("old", "red"), strict=True):
        assert request.prompt + candidate == tokenizer(f"The river is {text}", add_special_tokens=False)["input_ids"]


def test_unasked_has_the_same_candidates(tokenizer):
    item = Item("Question: who?\nAnswer:", ("me", "you two"), unasked="Question:\nAnswer:", cloze=True)
    (asked,), (without,) = requests([item], tokenizer, ended=False), unasked([item], tokenizer)
    assert without.candidates == asked.candidates
    assert without.prompt != asked.prompt
