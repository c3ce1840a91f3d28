"""Published files in; solvers out, as a scheduler for diffusers with files and a card."""

from gas_nb.runtime.extras import needs

with needs("diffusers"):
    import diffusers  # noqa: F401

from gas_nb.exchange.betas import compact_schedule, diffusers_betas, expand_schedule
from gas_nb.exchange.bundles import Bundle, bundle_of_files, bundle_of_runs
from gas_nb.exchange.cards import plain_card, without_folders
from gas_nb.exchange.files import (
    GASScheduler,
    make_portable,
    model_card,
    save_pipeline,
    shipped_scheduler,
)
from gas_nb.exchange.published import (
    PublishedData,
    load_published_checkpoint,
    load_published_dataset,
    load_published_discriminator,
)
from gas_nb.exchange.scheduler import TableauScheduler
from gas_nb.exchange.stepping import start_at

__all__ = [
    "Bundle",
    "GASScheduler",
    "PublishedData",
    "TableauScheduler",
    "bundle_of_files",
    "bundle_of_runs",
    "compact_schedule",
    "diffusers_betas",
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
