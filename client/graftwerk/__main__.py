"""`python -m client` is `graftwerk`."""

from graftwerk.commands import app


def main() -> None:
    """The entry point of the command."""
    app(prog_name="graftwerk")


if __name__ == "__main__":
    main()
