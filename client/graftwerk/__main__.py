"""`python -m graftwerk`: the same as the `graftwerk` command."""

from graftwerk.commands import app


def main() -> None:
    """Runs the `graftwerk` command."""
    app(prog_name="graftwerk")


if __name__ == "__main__":
    main()
