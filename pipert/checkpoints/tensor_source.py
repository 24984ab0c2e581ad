"""TensorSource: where values come from, by their names in the unpartitioned model."""

from collections.abc import Set
from typing import Protocol

from torch import Tensor


class TensorSource(Protocol):
    """What `materialize` needs of a checkpoint.

    Attributes:
        names: of the tensors that it has.
        bytes_read: so far.
    """

    @property
    def names(self) -> Set[str]:
        """Of the tensors that it has."""

    @property
    def bytes_read(self) -> int:
        """So far."""

    def check(self, name: str, target: Tensor) -> None:
        """Checks that the tensor can be read into `target`, which may be on the meta device.

        Raises:
            ValueError: the message says what differs.
        """

    def read_into(self, name: str, target: Tensor) -> None:
        """Copies the tensor into `target`, a contiguous one."""

    def close(self) -> None:
        """Closes its files; they open again when it is asked."""
