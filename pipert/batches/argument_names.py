"""ArgumentNames: by which names wired stages are given the arguments of a batch."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipert.batches.batch import Batch
from pipert.batches.specs import BatchSpecs
from pipert.stages import Stages


class ArgumentNames:
    """The names of the arguments of a model whose stages have specs.

    What a caller gives by position gets the name that the model's forward has for it, so that any
    stage can take it.

    Args:
        stages: with specs.
    """

    def __init__(self, stages: Stages) -> None:
        self._positional = stages.arguments
        taken = (name for spec in stages.specs or () for name in spec.arguments)
        self._known = {*stages.arguments, *stages.fixed, *taken}
        self._fixed = stages.fixed

    def bind(self, batch: Batch) -> Batch:
        """The batch with all of its arguments by name. Binding it again changes nothing.

        Raises:
            TypeError: the model doesn't take them like that.
            ValueError: the stages were made for another value of one of them.
        """
        if batch.microbatches is None:
            return batch._replace(args=(), kwargs=self._bind(batch.args, batch.kwargs, ""))
        args, kwargs = batch.arguments()
        entries = enumerate(zip(args, kwargs, strict=True))
        named = [self._bind(a, k, f"microbatches[{m}]: ") for m, (a, k) in entries]
        return batch._replace(microbatches=named)

    def name_specs(self, specs: BatchSpecs) -> BatchSpecs:
        """The specs of a batch with all of its arguments by name.

        Raises:
            ValueError: there is a spec for an argument that isn't there.
        """
        return specs.by_name(self._positional, self._known)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> dict[str, Any]:
        if len(args) > len(self._positional):
            names = _listed(self._positional)
            raise TypeError(
                f"{where}the model takes {len(self._positional)} arguments by position ({names}), "
                f"got {len(args)}"
            )
        named = dict(zip(self._positional, args, strict=False))
        for name, value in kwargs.items():
            if name in named:
                raise TypeError(f"{where}got the argument {name!r} by position and by name")
            if name not in self._known:
                raise TypeError(
                    f"{where}neither the model's forward nor a stage takes the argument {name!r}; "
                    f"they take: {_listed(sorted(self._known))}"
                )
            named[name] = value
        for name in named.keys() & self._fixed.keys():
            if not _is_same(named[name], self._fixed[name]):
                raise ValueError(
                    f"{where}the stages were made with {name}={self._fixed[name]!r}: expected no "
                    f"other value, got {_described(named[name])} (split the model with an example "
                    f"of {name})"
                )
        return named


def _is_same(value: Any, fixed: Any) -> bool:
    is_plain = isinstance(value, bool | int | float | str) and type(value) is type(fixed)
    return value is fixed or (is_plain and value == fixed)


def _described(value: Any) -> str:
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if is_plain else f"a {type(value).__name__}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
