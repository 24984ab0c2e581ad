"""Specs: how the values of a batch are cut into microbatches, and outputs put together again."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True)
class Cut:
    """A tensor, or each one in a container, is cut along a dimension, as by torch.tensor_split.

    Tensors without dimensions, and values that aren't tensors, go to every microbatch whole.

    Attributes:
        dim: the dimension; negative ones count from the last.
    """

    dim: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int):
            raise TypeError(f"dim must be a dimension's number, got {self.dim!r}")


class Replicate:
    """The type of `pipert.REPLICATE`: a value goes to every microbatch whole."""

    def __repr__(self) -> str:
        return "pipert.REPLICATE"


REPLICATE = Replicate()


@dataclass(frozen=True)
class CustomCut:
    """A value is cut, or outputs are merged, by functions of the user's.

    Attributes:
        cut: `cut(value, num_microbatches)` returns a list of the pieces. It is called once a step.
        merge: `merge(pieces)` returns the whole of a list of the microbatches' outputs.
    """

    cut: Callable[[Any, int], Sequence[Any]] | None = None
    merge: Callable[[Sequence[Any]], Any] | None = None

    def __post_init__(self) -> None:
        for name, function in (("cut", self.cut), ("merge", self.merge)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function, got {type(function).__name__}")
        if self.cut is None and self.merge is None:
            raise ValueError("expected CustomCut(cut=...) or CustomCut(merge=...), got neither")


class Spec(NamedTuple):
    """A spec in the form in which C++ takes it.

    Attributes:
        kind: which of them it is.
        name: where it stands, such as "args_spec[0]".
        dim: of "cut"; else 0.
        rest: the function of "custom", the parts of "sequence" and "named"; else None.
    """

    kind: Literal["default", "cut", "whole", "custom", "sequence", "named"]
    name: str
    dim: int = 0
    rest: Any = None


def parse_spec(given: Any, name: str, function: str) -> Spec:
    """What the user gave, in one form.

    Args:
        given: of Cut, REPLICATE, CustomCut, int, None, torch's TensorChunkSpec and _Replicate, in
            tuples, lists and dicts.
        name: where it stands.
        function: what a CustomCut must have, "cut" or "merge".

    Raises:
        TypeError, ValueError: it is something else; the message says where.
    """
    if given is None:
        return Spec("default", name)
    if isinstance(given, Cut):
        return Spec("cut", name, given.dim)
    if isinstance(given, int) and not isinstance(given, bool):
        return Spec("cut", name, given)
    if isinstance(given, Replicate) or given is Replicate:
        return Spec("whole", name)
    if isinstance(given, CustomCut):
        if getattr(given, function) is None:
            raise ValueError(f"{name}: expected CustomCut({function}=...), got none")
        return Spec("custom", name, 0, getattr(given, function))
    if isinstance(given, Mapping):
        parts = {k: parse_spec(v, f"{name}[{k!r}]", function) for k, v in given.items()}
        return Spec("named", name, 0, parts)
    if isinstance(given, tuple | list):
        each = [parse_spec(v, f"{name}[{i}]", function) for i, v in enumerate(given)]
        return Spec("sequence", name, 0, each)
    if (torchs := _parse_torchs(given, name)) is not None:
        return torchs
    raise TypeError(
        f"{name} must be a pipert.Cut, pipert.REPLICATE, a pipert.CustomCut, a dimension's number "
        f"or None, or a tuple, list or dict of them, got {type(given).__name__}"
    )


def _parse_torchs(given: Any, name: str) -> Spec | None:
    """Of torch.distributed.pipelining, which is not imported for this."""
    torchs = sys.modules.get("torch.distributed.pipelining.microbatch")
    if torchs is None:
        return None
    if isinstance(given, torchs.TensorChunkSpec):
        return Spec("cut", name, given.split_dim)
    if given is torchs._Replicate or isinstance(given, torchs._Replicate):
        return Spec("whole", name)
    return None


@dataclass(frozen=True)
class BatchSpecs:
    """The specs of one pipeline, as `Pipeline` has them.

    Attributes:
        args: of step's positional arguments: one for all, or a tuple by position.
        kwargs: of step's keyword arguments: one for all, or a dict by name.
        target: of the target.
        output: of the last stage's output; "custom" has the merge.
    """

    args: Spec
    kwargs: Spec
    target: Spec
    output: Spec

    @staticmethod
    def parse(args: Any, kwargs: Any, target: Any, output: Any) -> "BatchSpecs":
        """Of what the user gave.

        Raises:
            TypeError, ValueError: something is no spec; the message says where.
        """
        parsed = parse_spec(args, "args_spec", "cut")
        if parsed.kind in ("named", "custom"):
            raise TypeError(
                "args_spec must be one spec for all positional arguments, or a tuple by position, "
                f"got {type(args).__name__}"
            )
        named = parse_spec(kwargs, "kwargs_spec", "cut")
        if named.kind in ("sequence", "custom"):
            raise TypeError(
                "kwargs_spec must be one spec for all keyword arguments, or a dict by name, got "
                f"{type(kwargs).__name__}"
            )
        return BatchSpecs(
            parsed,
            named,
            parse_spec(target, "target_spec", "cut"),
            parse_spec(output, "output_spec", "merge"),
        )

    def by_name(self, positional: Sequence[str], known: set[str]) -> "BatchSpecs":
        """The same where all arguments come by name.

        Args:
            positional: names of the positional arguments, in order.
            known: all names.

        Raises:
            ValueError: there is a spec too many.
        """
        if self.kwargs.kind not in ("default", "named"):
            raise ValueError(
                "kwargs_spec must be a dict by name where stages take arguments by name, got one "
                "spec for all"
            )
        check_names(self.kwargs, known)
        named: dict[str, Spec] = {}
        if self.args.kind == "sequence":
            if len(self.args.rest) > len(positional):
                raise ValueError(
                    f"args_spec has specs for {len(self.args.rest)} arguments, the model takes "
                    f"{len(positional)} by position"
                )
            named.update(zip(positional, self.args.rest, strict=False))
        elif self.args.kind != "default":
            named.update(dict.fromkeys(positional, self.args))
        for name, spec in (self.kwargs.rest or {}).items():
            if name in named and self.args.kind == "sequence":
                raise ValueError(
                    f"{named[name].name} and {spec.name} are for the same argument: expected one "
                    "of them"
                )
            named[name] = spec
        return BatchSpecs(
            Spec("default", "args_spec"),
            Spec("named", "kwargs_spec", 0, named),
            self.target,
            self.output,
        )

    def for_runtime(self) -> tuple[Spec, Spec, Spec]:
        """What C++ takes."""
        return self.args, self.kwargs, self.target

    def describe(self) -> list[Any]:
        """As JSON values, to be compared with those of other ranks."""
        return [_describe(spec) for spec in (self.args, self.kwargs, self.target, self.output)]


def check_names(kwargs: Spec, known: set[str]) -> None:
    """Checks that there are arguments for the specs of `kwargs_spec`.

    Raises:
        ValueError: there is none for one of them.
    """
    if kwargs.kind != "named":
        return
    for name in kwargs.rest:
        if name not in known:
            raise ValueError(
                f"kwargs_spec has a spec for {name!r}, the arguments by name are: "
                f"{', '.join(sorted(known)) or 'none'}"
            )


def _describe(spec: Spec) -> Any:
    parts = spec.rest
    if spec.kind == "named":
        parts = [[repr(key), _describe(part)] for key, part in spec.rest.items()]
    elif spec.kind == "sequence":
        parts = [_describe(part) for part in spec.rest]
    elif spec.kind == "custom":
        parts = getattr(spec.rest, "__qualname__", type(spec.rest).__name__)
    return [spec.kind, spec.dim, parts]
