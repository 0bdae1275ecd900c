"""`python -m rankwright`: what torchrun and accelerate launch."""

from rankwright.cli import main

if __name__ == "__main__":
    main()
