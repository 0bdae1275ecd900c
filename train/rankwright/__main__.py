"""`python -m rankwright`: what torchrun and accelerate launch."""

from __future__ import annotations

from rankwright.cli.main import main

if __name__ == "__main__":
    main()
