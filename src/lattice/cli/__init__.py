"""The command line: one file a command, each a thin layer over the public Python surface.

Nothing but typer is imported here, and each command imports what it needs when it runs: `lattice --help`
stays quick.
"""

from __future__ import annotations

import typer

from lattice.cli import bench, chat, doctor, embed, eval, list, pull, quantize, rm, run, show
from lattice.cli._app import Group, example

app = typer.Typer(
    name="lattice",
    cls=Group,
    help="Embed text and chat with transformer models, on plain CPUs.",
    epilog=example('lattice embed "a cat" "a kitten" "a train"', 'lattice run "Why is the sky blue?"', "lattice chat"),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help costs a tenth of a second, boxes cost half a second
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        from lattice import __version__

        typer.echo(f"lattice {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


for module in (embed, run, chat, pull, list, show, rm, quantize, eval, bench, doctor):
    module.register(app)


def main() -> None:
    """Run the command line on the process's arguments."""
    app(prog_name="lattice")
