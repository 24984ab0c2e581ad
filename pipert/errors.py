"""PipelineError, and how a failure is told to the caller and to the other processes."""

import json
import traceback

from pipert._C import Action
from pipert.diagnosis import diagnose

_VERBS = {
    "F": "forward",
    "B": "backward",
    "I": "backward, input half",
    "W": "backward, weight half",
    "R": "recompute",
    "OFFLOAD": "offload",
    "RELOAD": "reload",
    "OVERLAP_F_B": "overlapped pair",
}


class PipelineError(RuntimeError):
    """A step failed while it ran. The user's own exception, if there is one, is `__cause__`.

    One of kind "timeout" is a TimeoutError too.

    Attributes:
        kind: "action" (the user's code failed), "transfer" (a message was lost or was not the
            expected one), "timeout" (a rank waited too long), "remote" (another process failed
            first; the attributes below tell where), "interrupted".
        rank: the rank that failed.
        stage: the stage that it ran; None where it ran none.
        microbatch: likewise.
        action: likewise, as text ("1F3").
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "action",
        rank: int | None = None,
        stage: int | None = None,
        microbatch: int | None = None,
        action: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.rank = rank
        self.stage = stage
        self.microbatch = microbatch
        self.action = action


class PipelineTimeoutError(PipelineError, TimeoutError):
    """A PipelineError of kind "timeout", for those who catch every TimeoutError."""


def make_pipeline_error(
    kind: str,
    rank: int,
    action: Action | None,
    message: str,
    cause: BaseException | None,
    advice: str = "",
) -> PipelineError:
    """Makes the error of what is known of a failure; C++ calls it too.

    Args:
        kind: as in PipelineError.
        rank: that failed.
        action: what it ran; None: nothing.
        message: what is known beside it; of an action, what it had been given.
        cause: the user's exception, or a channel's.
        advice: lines about it, each behind a line break; see `pipert.local.out_of_memory`.
    """
    if kind == "remote":
        return error_of_peer(message)
    where = f"rank {rank}"
    if action is not None:
        verb = _VERBS.get(action.kind, action.kind)
        where += f", stage {action.stage}, microbatch {action.microbatch}, {action} ({verb})"
    if message and (kind == "transfer" or (kind == "timeout" and cause is not None)):
        where += f", {message}"
    if cause is not None:
        what = f"{type(cause).__name__}: {_text(cause)}"
        if kind == "action" and action is not None:
            what += diagnose(cause, action.stage) + (f"\n  {message}" if message else "")
            what += advice
    else:
        what = message
    error_class = PipelineTimeoutError if kind == "timeout" else PipelineError
    return error_class(
        f"{where}: {what}",
        kind=kind,
        rank=rank,
        stage=action.stage if action is not None else None,
        microbatch=action.microbatch if action is not None else None,
        action=str(action) if action is not None else None,
    )


def describe_for_peers(error: BaseException, rank: int | None = None) -> str:
    """What the other processes are told of `error`, as JSON.

    Args:
        error: a PipelineError, which names its rank; or any other, of `rank`.
        rank: this process's.
    """
    where = {"rank": rank, "stage": None, "microbatch": None, "action": None}
    message = f"rank {rank}: {type(error).__name__}: {_text(error)}"
    if isinstance(error, PipelineError):
        where = {name: getattr(error, name) for name in where}
        message = str(error)
    trace = "".join(traceback.format_exception(error))
    return json.dumps({"message": message, "traceback": trace, **where})


def error_of_peer(text: str) -> PipelineError:
    """What this process raises when another one gave `describe_for_peers`."""
    told = json.loads(text)
    error = PipelineError(
        f"another rank failed: {told['message']}",
        kind="remote",
        rank=told["rank"],
        stage=told["stage"],
        microbatch=told["microbatch"],
        action=told["action"],
    )
    error.__cause__ = RemoteTraceback(told["traceback"])
    return error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the user's own class
        return "an exception that can't be printed"


class RemoteTraceback(Exception):  # noqa: N818 - it isn't raised: it shows where another rank was
    """The traceback of the rank that failed, as text."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])
