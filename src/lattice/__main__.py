"""`python -m lattice`: the command line."""

from lattice.cli import main

if __name__ == "__main__":
    main()
