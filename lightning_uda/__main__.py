"""`python -m lightning_uda`: the command line."""

from lightning_uda.cli import main

if __name__ == "__main__":
    main()
