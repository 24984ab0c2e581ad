"""Models of Hugging Face's transformers: cut by what they say of themselves, without tracing."""

from pipert.integrations.transformers.checkpoint import open_checkpoint
from pipert.integrations.transformers.mask_functions import leaf_functions_of
from pipert.integrations.transformers.plan_split import split_by_plan
from pipert.integrations.transformers.plans import has_plan

__all__ = ["has_plan", "leaf_functions_of", "open_checkpoint", "split_by_plan"]
