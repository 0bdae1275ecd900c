"""Other libraries' notices and bars, kept out of our output."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Keep other libraries' notices and bars out of our output; what matters we check and say ourselves."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
