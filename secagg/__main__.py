"""`python -m secagg`: the command line. The one file of this package that looks up to `ffm`."""

from ffm.cli import main

if __name__ == "__main__":
    main()
