"""The command line."""

import enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="relict-lightning",
    help="Tells you when a generative model of medical images starts to hand out its training patients.",
    no_args_is_help=True,
    add_completion=False,
)


class Subjects(str, enum.Enum):
    """What the demo trains on."""

    FEW = "few"
    FRESH = "fresh"


@app.callback()
def main() -> None:
    """Tells you when a generative model of medical images starts to hand out its training patients."""


@app.command()
def demo(
    subjects: Annotated[
        Subjects, typer.Option(help="Train on few subjects, or on fresh ones all the time.")
    ] = Subjects.FEW,
    output: Annotated[Path, typer.Option(help="Folder for index, checkpoints, numbers and report.")] = Path(
        "relict_demo"
    ),
    max_steps: Annotated[int, typer.Option(help="Where training ends if it is not stopped.")] = 1500,
    seed: Annotated[int, typer.Option(help="Seed of subjects, weights, training and sampling.")] = 0,
) -> None:
    """Train a small generator of head images until it is caught memorizing (about two minutes on two cores)."""
    from relict_lightning.demo import run_demo

    outcome = run_demo(subjects=subjects.value, output=output, max_steps=max_steps, seed=seed)
    typer.echo(f"{outcome.steps} steps in {outcome.seconds:.0f} s.")
    if outcome.onset is not None:
        typer.echo(outcome.onset.reason)
    if outcome.checkpoint is not None:
        typer.echo(f"Go back to {outcome.checkpoint.path}, replica rate {outcome.checkpoint.replica_rate}.")
    typer.echo(
        f"Report: {outcome.report.resolve()} (a local file, which shows the matched pairs; nothing was uploaded)"
    )
    expected = subjects is Subjects.FEW
    if (outcome.onset is not None) != expected:
        typer.echo("Memorization onset was expected." if expected else "No onset was expected.", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
