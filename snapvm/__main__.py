"""``python3 -m snapvm``: the same as the command ``snapvm``."""

from snapvm.cli.app import main

if __name__ == "__main__":
    main()
