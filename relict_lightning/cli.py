"""The command line."""

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from relict_lightning.errors import RelictError

app = typer.Typer(
    name="relict-lightning",
    help="Tells you when a generative model of medical images starts to hand out its training patients.",
    no_args_is_help=True,
    add_completion=False,
    # Local variables in a traceback may name patients.
    pretty_exceptions_show_locals=False,
)

Training = Annotated[
    Path, typer.Option(help="The whole training set: a folder of NIfTI, DICOM, PNG or NumPy files, or one array.")
]
HeldOut = Annotated[
    Path | None,
    typer.Option(
        help="Images of patients that the model was not trained on. Without them there are no rates and p-values."
    ),
]
TopK = Annotated[int, typer.Option(help="Training images that each sample is compared with, per view and mirroring.")]
Groups = Annotated[
    str | None,
    typer.Option(
        help="What says the patient: bids (sub-<label> in the path), stem (file name), parent (folder), or a CSV file "
        "with the columns file and group. Default for folders: bids."
    ),
]
Pattern = Annotated[
    str | None, typer.Option(help="Which training and held-out files, such as '*/anat/*_T1w.nii.gz'. Default: all.")
]


class Subjects(str, enum.Enum):
    """What the demo trains on."""

    FEW = "few"
    FRESH = "fresh"


class Transforms(str, enum.Enum):
    """Which alterations of a copy are searched."""

    DEFAULT = "default"
    NONE = "none"

    @property
    def literal(self) -> Literal["default", "none"]:
        """The name that the detector takes."""
        return "default" if self is Transforms.DEFAULT else "none"


class Storage(str, enum.Enum):
    """How images are kept for comparison."""

    FLOAT16 = "float16"
    UINT8 = "uint8"
    REFERENCE = "reference"


class Check(str, enum.Enum):
    """How a set that is in the cache is recognised."""

    FULL = "full"
    SAMPLED = "sampled"


Stored = Annotated[
    Storage, typer.Option(help="How images are kept: float16, uint8 (half the space), or reference (read again).")
]
Checked = Annotated[
    Check,
    typer.Option(help="How a known set is recognised: by all images (full), or some and the files' dates (sampled)."),
]
Workers = Annotated[int, typer.Option(help="Processes that read images ahead.")]
HashIds = Annotated[bool, typer.Option("--hash-ids", help="Know ids and patients by keyed hashes only.")]

Alterations = Annotated[
    Transforms, typer.Option(help="Whether to look through mirroring and displacement (default) or not (none).")
]


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Turn an error that this package raises on purpose into its message and exit code 2."""
    try:
        yield
    except RelictError as error:
        _progress(f"Error: {error}")
        raise typer.Exit(2) from error


def _progress(line: str) -> None:
    """Say what is going on, apart from the results."""
    typer.echo(line, err=True)


@app.callback()
def main() -> None:
    """Tells you when a generative model of medical images starts to hand out its training patients."""


@app.command()
@_errors_in_one_line()
def audit(
    generated: Annotated[
        Path, typer.Argument(help="Samples: a folder of images, or one .npy or .npz file with all, channels second.")
    ],
    training: Training,
    output: Annotated[Path, typer.Option(help="New folder for verdicts, summary, report and pairs to rate.")],
    heldout: HeldOut = None,
    fdr: Annotated[float, typer.Option(help="False discovery rate of the verdicts.")] = 0.05,
    top_k: TopK = 5,
    transforms: Alterations = Transforms.DEFAULT,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder that keeps the index for the next audit. It holds patient data.")
    ] = None,
    groups: Groups = None,
    pattern: Pattern = None,
    pairs: Annotated[int, typer.Option(help="Pairs kept for experts to rate.")] = 100,
    store: Stored = Storage.FLOAT16,
    check: Checked = Check.FULL,
    num_workers: Workers = 0,
    self_test: Annotated[
        int, typer.Option(help="Copies of training images to plant per alteration, to see which are found; 0: none.")
    ] = 4,
    *,
    hash_ids: HashIds = False,
    show_ids: Annotated[
        bool, typer.Option("--show-ids", help="Name the matched training images and patients in verdicts and report.")
    ] = False,
) -> None:
    """Check finished samples: how many are replicas of training images, and of which."""
    from relict_lightning.audit import PAIRS, REPORT, SUMMARY, VERDICTS, AuditSettings, run_audit

    settings = AuditSettings(
        fdr=fdr,
        top_k=top_k,
        transforms=transforms.literal,
        pattern=pattern,
        groups=groups,
        num_pairs=pairs,
        store=store.value,
        check=check.value,
        hash_ids=hash_ids,
        num_workers=num_workers,
        self_test=self_test,
    )
    finished = run_audit(
        generated,
        training=training,
        heldout=heldout,
        output=output,
        settings=settings,
        cache_dir=cache_dir,
        show_ids=show_ids,
        announce=_progress,
    )
    for note in finished.notes:
        _progress(f"Note: {note}")
    result = finished.result
    if result.replica_rate is None:
        typer.echo("Replica rate: none, because there are no held-out images to compare with.")
    else:
        typer.echo(f"Replica rate: {result.replica_rate} ({100 * result.replica_rate.confidence:g} % interval)")
    if result.leaning_rate is not None:
        typer.echo(f"Leaning towards a training patient beyond chance: {result.leaning_rate}")
    if result.memorization_p_value is not None:
        typer.echo(f"Memorization p-value: {result.memorization_p_value:.2g}")
    if finished.self_test is not None:
        typer.echo("Self-test on planted copies of training images:")
        typer.echo(str(finished.self_test))
    typer.echo(f"Files: {REPORT}, {VERDICTS}, {SUMMARY} and {PAIRS} in {finished.folder}")
    typer.echo("They hold patient data, are readable by you only, and stayed on this machine.")


@app.command()
@_errors_in_one_line()
def index(
    training: Training,
    cache_dir: Annotated[Path, typer.Option(help="Folder that keeps the index. It holds patient data.")],
    heldout: HeldOut = None,
    top_k: TopK = 5,
    transforms: Alterations = Transforms.DEFAULT,
    groups: Groups = None,
    pattern: Pattern = None,
    store: Stored = Storage.FLOAT16,
    check: Checked = Check.FULL,
    num_workers: Workers = 0,
    duplicates: Annotated[
        Path | None, typer.Option(help="CSV file for pairs of images that are in the data sets twice. It names them.")
    ] = None,
    *,
    hash_ids: HashIds = False,
) -> None:
    """Build the index of a training set, or find it in the cache. `torchrun` shares the work among processes."""
    from relict_lightning.audit import AuditSettings
    from relict_lightning.prebuild import prebuild_index
    from relict_lightning.processes import launched
    from relict_lightning.report.private_file import write_private

    settings = AuditSettings(
        top_k=top_k,
        transforms=transforms.literal,
        pattern=pattern,
        groups=groups,
        store=store.value,
        check=check.value,
        hash_ids=hash_ids,
        num_workers=num_workers,
    )
    with launched() as processes:
        ready = prebuild_index(
            training=training,
            heldout=heldout,
            cache_dir=cache_dir,
            settings=settings,
            progress=True,
            processes=processes,
        )
        if not processes.is_first:
            return
    for note in ready.notes:
        _progress(f"Note: {note}")
    if ready.built:
        typer.echo(f"Built in {ready.seconds:.2f} s.")
    else:
        typer.echo(f"Reused what was there, in {ready.seconds:.2f} s; building it took {ready.build_seconds:.2f} s.")
    shape = " x ".join(str(side) for side in ready.image_shape)
    typer.echo(f"Training: {ready.training_images} images of {ready.training_patients} patients, each {shape}.")
    typer.echo(f"Held out: {ready.heldout_images} images, {ready.heldout_patients} patients used.")
    found = ready.audit
    bitwise = sum(pair.is_bitwise for pair in found.duplicates)
    typer.echo(
        f"Twice: {len(found.duplicates)} pairs of training images that are nearly equal, {bitwise} of them bit by bit; "
        f"{len(found.leaks)} held-out images that nearly equal a training image."
    )
    if duplicates is not None:
        typer.echo(f"Pairs: {write_private(duplicates, found.to_frame().to_csv(index=False))}")
    typer.echo(f"Cache: {cache_dir.absolute()}, {ready.megabytes:.1f} MB. It holds patient data and is local.")


@app.command()
@_errors_in_one_line()
def rate(
    audit_dir: Annotated[Path, typer.Argument(help="Folder that `audit` wrote.")],
    output: Annotated[Path | None, typer.Option(help="The page. Default: rating.html in the audit's folder.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of the pairs; give each rater another.")] = 0,
) -> None:
    """Write the page on which an expert rates an audit's pairs, without seeing any score."""
    from relict_lightning.audit_rating import write_audit_rating_page

    page, count = write_audit_rating_page(audit_dir, output=output or audit_dir / "rating.html", seed=seed)
    typer.echo(f"Rating page of {count} pairs: {page}")
    typer.echo("It shows patients and is a local file. Open it, rate, save the ratings, and run")
    typer.echo(f"  relict-lightning calibrate {audit_dir} --ratings ratings.csv")


@app.command()
@_errors_in_one_line()
def calibrate(
    audit_dir: Annotated[Path, typer.Argument(help="Folder that `audit` wrote.")],
    ratings: Annotated[Path, typer.Option(help="CSV file that the rating page saved.")],
    output: Annotated[
        Path | None, typer.Option(help="Numbers as JSON. Default: calibration.json in the audit's folder.")
    ] = None,
) -> None:
    """Judge each level's measures by expert ratings: RELICT's protocol, and the same out of sample."""
    from relict_lightning.audit_rating import calibrate_audit, write_calibration

    calibrations = calibrate_audit(audit_dir, ratings=ratings)
    written = write_calibration(output or audit_dir / "calibration.json", calibrations)
    width = max(len(name) for name in calibrations)
    typer.echo(f"{'':{width}}  balanced                                        out of  area under ROC")
    typer.echo(f"{'':{width}}  accuracy  sensitivity  specificity  threshold  sample  [95 % interval]")
    for name, found in calibrations.items():
        typer.echo(
            f"{name:{width}}  {found.balanced_accuracy:8.3f}  {found.sensitivity.value:11.3f}  "
            f"{found.specificity.value:11.3f}  {found.threshold:9.3g}  {found.out_of_sample_balanced_accuracy:6.3f}  "
            f"{found.area_under_roc}"
        )
    first = next(iter(calibrations.values()))
    typer.echo(
        f"{first.rated} pairs were rated, {first.replicas} of them as replicas. The first three columns flatter, "
        f"because their threshold was chosen on these very pairs; out of sample is the balanced accuracy without that. "
        f"Half of the audit's pairs are its most alike ones, so no column is the accuracy on all samples."
    )
    typer.echo(f"Numbers: {written}")


@app.command()
@_errors_in_one_line()
def report(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run that had a ReplicaMonitor.")],
    output: Annotated[Path, typer.Option(help="The report.")] = Path("report.html"),
    monitor: Annotated[
        str | None, typer.Option(help="Name of the monitor, where the checkpoint holds several.")
    ] = None,
) -> None:
    """Write the report of a run from a checkpoint, for instance of a run that died."""
    from relict_lightning.callbacks.saved_run import write_checkpoint_report

    written = write_checkpoint_report(output, checkpoint=checkpoint, monitor=monitor)
    typer.echo(f"Report: {written} (a local file, without images of patients; nothing was uploaded)")


@app.command()
@_errors_in_one_line()
def demo(
    subjects: Annotated[
        Subjects, typer.Option(help="Train on few subjects, or on fresh ones all the time.")
    ] = Subjects.FEW,
    output: Annotated[Path, typer.Option(help="Folder for index, checkpoints, numbers and report.")] = Path(
        "relict_demo"
    ),
    max_steps: Annotated[int, typer.Option(help="Where training ends if it is not stopped.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of subjects, weights, training and sampling.")] = 0,
) -> None:
    """Train a small generator of head images until it is caught memorizing (about two minutes on two cores)."""
    from relict_lightning.demo import run_demo

    outcome = run_demo(subjects=subjects.value, output=output, max_steps=max_steps, seed=seed)
    typer.echo(f"{outcome.steps} steps in {outcome.seconds:.0f} s.")
    typer.echo(
        f"Report: {outcome.report.resolve()} (a local file, which shows the matched pairs; nothing was uploaded)"
    )
    expected = subjects is Subjects.FEW
    if (outcome.onset is not None) != expected:
        typer.echo("Memorization onset was expected." if expected else "No onset was expected.", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
