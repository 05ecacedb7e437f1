"""`python -m gradtrace` is the command `gradtrace`."""

from gradtrace.cli.app import main

if __name__ == "__main__":
    main()
