"""PlanStage: the model's own forward, with stand-ins for the modules of other stages."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipert.integrations.transformers.stand_ins import HandOver
from pipert.split.outputs import Outputs, only


class PlanStage(nn.Module):
    """One stage of a transformers model.

    It holds a shallow copy of the model whose own modules are the model's, under their names there,
    and runs its forward. What comes before the stage's first layer is made, by stand-ins, to give
    the hidden state that the stage before made; what comes behind its last layer is passed through.

    Args:
        model: the shallow copy, with stand-ins; the stage takes over its children.
        base: the path in it of the model without its head; empty: itself.
        hand_over: where the stand-ins look for the hidden state; None on the first stage.
        is_last: whether it returns what the model does, else the hidden state alone.
        received_as: the model's argument that stands for the hidden state, so that its forward sees
            a batch of that shape; None: none does.
        fixed: arguments that are always these.
        outputs: those of the model that the last stage returns; None: all.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        base: str,
        hand_over: HandOver | None,
        is_last: bool,
        received_as: str | None,
        fixed: Mapping[str, Any],
        outputs: Outputs = None,
    ) -> None:
        super().__init__()
        # The same dicts: a parameter that is put in another's place is in both.
        self._modules = model._modules
        self._parameters = model._parameters
        self._buffers = model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = model.training
        self.__dict__["_model"] = model  # not a child: its names are the stage's
        self._base = base
        self._hand_over = hand_over
        self._is_last = is_last
        self._received_as = received_as
        self._fixed = dict(fixed)
        self._outputs = outputs

    def forward(self, *inputs: Tensor, **arguments: Any) -> Any:
        """The hidden state in a tuple; of the last stage, what the model returns."""
        model = self.__dict__["_model"]
        model.training = self.training
        call = model if self._is_last or not self._base else model.get_submodule(self._base)
        arguments.update(self._fixed)
        if self._hand_over is None:
            output = call(**arguments)
        else:
            (hidden,) = inputs
            if self._received_as is not None:
                arguments[self._received_as] = hidden
            with self._hand_over.giving(hidden):
                output = call(**arguments)
        if self._is_last:
            return only(self._outputs, output, type(model).__name__)
        return (output[0] if isinstance(output, tuple) else output.last_hidden_state,)

    def pipert_init_weights(self, module: nn.Module) -> None:
        """Gives one module's parameters and buffers their values, as the model does."""
        self.__dict__["_model"]._init_weights(module)

    def extra_repr(self) -> str:
        """For print."""
        return f"of {type(self.__dict__['_model']).__name__}"
