"""Other people's files, other people's tools: the public names of `gas_nb.exchange`."""

from gas_nb.runtime.extras import needs

# diffusers reads the module of a scheduler from a saved pipeline (model_index.json says
# gas_nb.interop), and looks for the base class beside it.
with needs("diffusers"):
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

from gas_nb.exchange import (
    GASScheduler,
    PublishedData,
    compact_schedule,
    expand_schedule,
    load_published_checkpoint,
    load_published_dataset,
    load_published_discriminator,
    make_portable,
    model_card,
    plain_card,
    save_pipeline,
    shipped_scheduler,
    start_at,
    without_folders,
)

__all__ = [
    "GASScheduler",
    "PublishedData",
    "compact_schedule",
    "expand_schedule",
    "load_published_checkpoint",
    "load_published_dataset",
    "load_published_discriminator",
    "make_portable",
    "model_card",
    "plain_card",
    "save_pipeline",
    "shipped_scheduler",
    "start_at",
    "without_folders",
]
