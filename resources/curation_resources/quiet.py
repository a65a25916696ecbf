"""Keeping other libraries' bars and advice out of our output."""

from __future__ import annotations

import warnings


def quieten_transformers() -> None:
    """Leave progress to our own bars: no bar and no advice from transformers for every load."""
    # transformers' own modeling code trips over its deprecation; nothing that we or a user can mend.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
