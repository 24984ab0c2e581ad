"""Cuts that all ranks have alike, though each would measure other times: those of the first one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pipert.balancing.balance import Cuts
from pipert.balancing.layer_profile import LayerProfile
from pipert.processes.distributed import Peers

_CALL = "split the model"
_PATIENCE_S = 1800.0  # the first rank runs every layer several times


class AgreedCuts:
    """What the first rank of a group chose or measured, on all of them.

    The others wait meanwhile, and disturb no measurement. What its ValueErrors say is theirs too.

    Args:
        peers: the ranks, which all call the same; None: this process decides alone.
    """

    def __init__(self, peers: Peers | None = None) -> None:
        self._peers = peers
        if peers is not None:
            peers.timeout_s = _PATIENCE_S

    def chosen(self, choose: Callable[[], Cuts], num_layers: int) -> Cuts:
        """The first rank's cuts. A collective call.

        Args:
            choose: called on the first rank alone.
            num_layers: of the model, on this rank.

        Raises:
            ValueError: `choose` raised it on the first rank, or that one has another model.
        """
        if self._peers is None:
            return choose()
        told = self._of_first(self._peers, lambda: asdict(choose()))
        sizes, profiles = told["sizes"], told["profiles"]
        if sum(sizes) != num_layers:
            raise ValueError(
                f"ranks must split the same model: rank 0 has {sum(sizes)} layers, rank "
                f"{self._peers.rank} has {num_layers}"
            )
        return Cuts(sizes, profiles and [LayerProfile(**profile) for profile in profiles])

    def measured(self, measure: Callable[[], list[LayerProfile]]) -> list[LayerProfile]:
        """As `chosen`, where the cuts are given and only what the parts take isn't."""
        if self._peers is None:
            return measure()
        told = self._of_first(self._peers, lambda: {"profiles": [asdict(p) for p in measure()]})
        return [LayerProfile(**profile) for profile in told["profiles"]]

    @staticmethod
    def _of_first(peers: Peers, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` returned on the first rank: JSON values."""
        if peers.rank > 0:
            told: dict[str, Any] = peers.exchange(_CALL)[0]
        else:
            try:
                told = make()
            except ValueError as error:
                peers.exchange(_CALL, {"error": str(error)})
                raise
            peers.exchange(_CALL, told)
        if "error" in told:
            raise ValueError(f"on rank 0: {told['error']}")
        return told


ALONE = AgreedCuts()
