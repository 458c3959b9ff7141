"""The `secagg` command. Heavy imports happen inside commands: `secagg --help` answers at once."""

from ffm.cli.app import app


def main() -> None:
    """Entry point of the `secagg` command."""
    app()
