"""Any run of `configs/` through LightningCLI.

    python examples/train.py fit --config configs/demo.yaml

Every argument can be set in the file, and most on the command line, for instance `--trainer.max_steps 200`. With a
model and a data module of your own, change their `class_path`.
"""

from lightning.pytorch.cli import LightningCLI

if __name__ == "__main__":
    LightningCLI()
