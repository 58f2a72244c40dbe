"""`graftwerk chain`: jobs of a file."""

from pathlib import Path
from typing import Annotated

import typer

from graftwerk.option_bundles import expanded
from graftwerk.options import ChainSubmission, Connection


@expanded
def chain(
    file: Annotated[Path, typer.Argument(help="YAML file with a list `jobs`.", show_default=False)],
    *,
    connection: Connection,
    submission: ChainSubmission,
) -> None:
    """Run the jobs of a YAML file, each after those that it needs."""
    from graftwerk.chain import run_chain

    run_chain(connection, submission, file)
