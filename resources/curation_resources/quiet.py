"""Silence other libraries' progress bars and advice."""

from __future__ import annotations

import warnings


def quieten_transformers() -> None:
    """Disable the progress bars and log messages that transformers prints on every load."""
    # transformers' own modeling code triggers this deprecation warning; neither we nor a user can fix it.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
