"""A finished adapter on the Hugging Face hub: the files of its folder, in one commit, and nothing else of the run.

The Trainer would push output_dir as it stands at each save, with the optimizer's state and paths of this machine; so
`push_to_hub` is switched off for it.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy

from loramoe.training.arguments import Arguments, TrainArguments
from loramoe.training.distributed import decide_on_rank_0
from loramoe.utils import SaveError, UsageError, as_usage_error


def open_repository(arguments: Arguments) -> str | None:
    """Creates the repository of `--push_to_hub`, unless it exists, so that a wrong token or name is found early.

    Args:
        arguments: The flags; `push_to_hub` is switched off in place.

    Returns:
        Its full name, or None if nothing is to be pushed.

    Raises:
        UsageError: If flags contradict the push, or the hub refuses it or is not reached.
    """
    args = arguments[2]
    if not args.push_to_hub:
        return None
    if not args.do_train:
        raise UsageError("push_to_hub pushes what a training has finished, and do_train is false. Leave it out.")
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise UsageError(
            f"hub_strategy={HubStrategy(args.hub_strategy).value} would push the optimizer's state; only the finished "
            "adapter is pushed. Leave hub_strategy out."
        )
    args.push_to_hub = False
    return decide_on_rank_0(lambda: _create(args))


def _create(args: TrainArguments) -> str:
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    hub = HfApi()
    # What cannot reach the hub raises errors of requests, httpx or the hub's own, by version.
    with as_usage_error(Exception, about=f"push_to_hub: there can be no repository {name} on {hub.endpoint}:"):
        repository: str = hub.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
        if args.hub_revision:
            hub.create_branch(repository, branch=args.hub_revision, exist_ok=True)
    return repository


def push(repository: str, folder: Path, args: TrainArguments) -> str:
    """Uploads an adapter's folder in one commit, and returns the commit's address.

    Raises:
        SaveError: If it fails; names the command that pushes it again.
    """
    try:
        commit = HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload the trained adapter",
            revision=args.hub_revision,
        )
    except Exception as error:
        branch = f" --revision {args.hub_revision}" if args.hub_revision else ""
        raise SaveError(
            f"the run is finished, and its adapter whole in {folder}, but it could not be pushed to {repository}: "
            f"{' '.join(str(error).split())}. To push it again: hf upload {repository} {folder}{branch}"
        ) from error
    return commit.commit_url
