"""Programs: those of this process's ranks, proved before any of them runs."""

from collections.abc import Iterable, Sequence

from pipert import _C

# Up to so many instructions of all ranks, a process that runs some of the ranks makes the programs
# of the others too, and proves all together; that takes well under a second.
_MOST_TOGETHER = 1_000_000


class Programs(tuple[_C.Program, ...]):
    """The programs of this process's ranks; prints as their text."""

    @classmethod
    def proved(
        cls,
        lowering: "_C.Lowering | Sequence[_C.Program]",
        ranks: Iterable[int],
        most_together: int = _MOST_TOGETHER,
    ) -> "Programs":
        """Makes the programs of some ranks, and proves them.

        With those of the others where all are few enough, else each alone: every process has the
        same schedule and options, so it can make any rank's.

        Args:
            lowering: makes the programs.
            ranks: of this process.
            most_together: the most instructions of all ranks that are proved together.

        Raises:
            RuntimeError: a program is wrong, which is a mistake of pipert.
        """
        programs = cls(lowering[rank] for rank in ranks)
        together = programs
        num_others = len(lowering) - len(programs)
        if num_others and max(map(len, programs)) * len(lowering) <= most_together:
            own = {program.rank: program for program in programs}
            together = cls(own.get(rank) or lowering[rank] for rank in range(len(lowering)))
        proof = _C.prove(together)
        if not proof:
            raise RuntimeError(
                f"pipert lowered this schedule to programs that aren't right; please report it. "
                f"{proof.message}"
            )
        return programs

    def prove(self) -> _C.Proof:
        """What `pipert.prove` says of them: together if they are all ranks', else each alone."""
        return _C.prove(self)

    def __str__(self) -> str:
        return "\n".join(map(str, self))
