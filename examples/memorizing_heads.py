"""A generator is trained on too few heads, and caught when it begins to hand them out.

    python examples/memorizing_heads.py

takes a few minutes on two processor cores. Put your own model and data in the place of parts 1 and 2; part 3 stays.
`--fast` trains for a moment only, to see that everything is installed.
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaMonitor
from relict_lightning.testing import HeadDataModule, HeadGenerator

parser = argparse.ArgumentParser(description="Train a generator of head images until it is caught memorizing.")
parser.add_argument("--output", type=Path, default=Path("memorizing_heads"), help="folder for everything written")
parser.add_argument("--fast", action="store_true", help="train for a moment only")
arguments = parser.parse_args()
output = arguments.output
size = (32, 32) if arguments.fast else (64, 64)
seed_everything(0)

# 1. Data. Any LightningDataModule will do. What matters is who is in it: `training` are the patients that the model
#    learns from, `heldout` are others. They are the control: how alike is a new patient to the nearest training one?
data = HeadDataModule(
    num_training=24,
    num_heldout=30 if arguments.fast else 200,
    shape=size,
    steps_per_epoch=2 if arguments.fast else 100,
)

# 2. Model. Any LightningModule that can draw n images: `sample(n, *, generator=None)` returns [n, channels, *spatial]
#    on the intensity scale of the training images. For another method or function, see `ReplicaMonitor(sampler=...)`.
model = HeadGenerator(shape=size, sampling_steps=4 if arguments.fast else 20)

# 3. The watch. At the start and after each epoch, 128 samples are drawn and looked up among the training images.
#    Without `training=` and `heldout=` the data sets of the training and validation dataloaders would be taken.
monitor = ReplicaMonitor(
    num_samples=16 if arguments.fast else 128,
    # The replica rate that is put up with: just above what 0 of 128 samples leaves open.
    tolerance=0.03,
    training=data.training,
    heldout=data.heldout,
    cache_dir=output / "index",
    report_path=output / "report.html",
)
stopping = MemorizationStopping()
keeper = MemorizationCheckpoint(dirpath=output / "checkpoints")

trainer = Trainer(
    max_steps=4 if arguments.fast else 1000,
    callbacks=[monitor, stopping, keeper],
    logger=CSVLogger(output, name="numbers"),
    log_every_n_steps=1 if arguments.fast else 100,
)
trainer.fit(model, datamodule=data)

# What to look at: the rate over time; when memorization was established, and by which evidence; where to go back to.
print("\nstep   replica rate (95 % interval)")
for evaluation in monitor.history:
    print(f"{evaluation.step:4d}   {evaluation.replica_rate}")
print(monitor.onset.reason if monitor.onset else "No memorization onset.")
if keeper.best:
    print(f"Go back to {keeper.best.path}")
# The report shows the copies beside the patients that they copy, so it is a local file. Nothing was uploaded.
print(f"Open {output / 'report.html'}")
