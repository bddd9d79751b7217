"""A finished adapter on the Hugging Face hub: the files of its folder, and nothing else of the run.

The Trainer would push output_dir as it stands, at each save: checkpoints with the optimizer's state, the training's
arguments as a pickle, paths of this machine, and the adapter in a folder of its own, where `PeftModel.from_pretrained`
does not look. So it is never told of the hub. The repository is opened before the training, so that a wrong token or
name is told before it; the adapter goes there once, after it, in one commit, with its card and figure.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy

from loramoe.report.card import hub_name
from loramoe.training.arguments import Arguments, TrainArguments
from loramoe.utils import SaveError, UsageError, as_usage_error

logger = logging.getLogger(__name__)


def open_repository(arguments: Arguments) -> str | None:
    """Makes the repository of `--push_to_hub`, unless it exists, and takes the push out of the Trainer's hands.

    Args:
        arguments: The flags; `push_to_hub` is switched off in place.

    Returns:
        Its full name, or None if nothing is to be pushed. Rank 0 asks, and all hear of the answer.

    Raises:
        UsageError: If flags contradict the push, or the hub refuses it or is not reached.
    """
    model_args, _, args = arguments
    if not args.push_to_hub:
        return None
    _check(args)
    args.push_to_hub = False
    answer: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            answer[0] = _create(args)
        except UsageError as error:
            answer[1] = error
        if hub_name(model_args.model_name_or_path) is None:
            logger.warning(
                "push_to_hub: adapter_config.json will name the base model as it is named here, %s, which nobody else "
                "can load. Set --model_name_or_path to its name on the hub if it has one.",
                model_args.model_name_or_path,
            )
    repository, refusal = broadcast_object_list(answer)
    if refusal is not None:
        raise refusal
    return cast("str | None", repository)


def _check(args: TrainArguments) -> None:
    if not args.do_train:
        raise UsageError(
            "push_to_hub pushes what a training has finished, and do_train is false. Leave it out; to push a finished "
            "adapter: hf upload USER/NAME OUTPUT_DIR/sft_lora_model"
        )
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise UsageError(
            f"hub_strategy={HubStrategy(args.hub_strategy).value} would push the optimizer's state and all that a "
            "checkpoint holds; the finished adapter alone is pushed. Leave hub_strategy out, or set end."
        )


def _create(args: TrainArguments) -> str:
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    hub = HfApi(token=args.hub_token)
    # What cannot reach the hub raises errors of requests, httpx or the hub's own, by version.
    with as_usage_error(Exception, about=f"push_to_hub: there can be no repository {name} on {hub.endpoint}:"):
        repository = hub.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
        if args.hub_revision:
            hub.create_branch(repository, branch=args.hub_revision, exist_ok=True)
    return repository


def push(repository: str, folder: Path, args: TrainArguments) -> str:
    """Uploads an adapter's folder in one commit.

    Args:
        repository: What `open_repository` returned.
        folder: Folder of the adapter.
        args: The training's flags.

    Returns:
        Address of the commit.

    Raises:
        SaveError: If it fails; says how to push the adapter again.
    """
    hub = HfApi(token=args.hub_token)
    try:
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload the trained adapter",
            revision=args.hub_revision,
        )
    except Exception as error:  # of requests, httpx or the hub's own, by version
        branch = f" --revision {args.hub_revision}" if args.hub_revision else ""
        raise SaveError(
            f"the run is finished, and its adapter whole in {folder}, but it could not be pushed to {repository}: "
            f"{' '.join(str(error).split())}. To push it again: hf upload {repository} {folder}{branch}"
        ) from error
    return commit.commit_url
