"""`python -m separable`: the command line, where its script is not on the path."""

from separable.cli import main

if __name__ == "__main__":
    main()
