"""`exposure train` and `exposure evaluate`."""

import argparse
from dataclasses import fields
from pathlib import Path

from .scenes import Scenes, pictures_in
from .shots import Range, Shots

HELD_OUT = Path(__file__).with_name("held_out.txt")


def add_train(parser: argparse.ArgumentParser) -> None:
    """The flags of `exposure train`; those of `Plan` bear its names."""
    from .loop import Plan

    parser.add_argument("--photos", type=Path, help="folder of clean pictures; without it dead leaves alone")
    parser.add_argument("--held-out", type=Path, default=HELD_OUT, help="list of file names that are left out")
    parser.add_argument("--leaves", type=float, default=0.3, help="share of crops from dead leaves (default 0.3)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a run found there is continued")
    parser.add_argument("--init", type=Path, help="checkpoint to start from, instead of random weights")
    parser.add_argument("--widths", type=int, nargs=5, metavar="N", help="channels of the five levels")
    parser.add_argument("--licence", default="unknown", help="licence of the weights, for the file's metadata")
    for field in fields(Plan):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, metavar="N")
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> None:
    """Train, or go on training, and write `unet.safetensors` into the run's folder."""
    from exposure.networks import CheckpointInfo, UNet, load_checkpoint, save_checkpoint
    from exposure.networks.unet import WIDTHS

    from .loop import Plan, Trainer
    from .report import Report

    plan = Plan(**{field.name: getattr(arguments, field.name) for field in fields(Plan)})
    pictures = pictures_in(arguments.photos) if arguments.photos else []
    names = set(arguments.held_out.read_text().splitlines())
    kept = [path for path in pictures if path.name not in names]
    unseen = [path for path in pictures if path.name in names] or kept
    network = load_checkpoint(arguments.init) if arguments.init else UNet(widths=arguments.widths or WIDTHS)
    trainer = Trainer(network, plan, arguments.out)
    print(f"{len(kept)} pictures, {len(pictures) - len(kept)} held out; from iteration {trainer.iteration}", flush=True)
    limits = Range()
    examples = Shots(Scenes(unseen, side=128, leaves=0, seed=plan.seed + 1), limits)
    report = Report(arguments.out / "tensorboard", [examples[index] for index in range(8)])
    trainer.run(Shots(Scenes(kept, side=plan.side, leaves=arguments.leaves, seed=plan.seed), limits), report)
    info = CheckpointInfo(
        training_noise=" and ".join(limits.noise),
        licence=arguments.licence,
        origin=f"{trainer.iteration} iterations of {plan.batch} crops, {trainer.seconds / 3600:.1f} h",
    )
    save_checkpoint(trainer.average, arguments.out / "unet.safetensors", info)
    print(f"{arguments.out / 'unet.safetensors'} written")


def main() -> None:
    """`python -m exposure.training.command train ...`"""
    parser = argparse.ArgumentParser(prog="exposure")
    commands = parser.add_subparsers(required=True)
    add_train(commands.add_parser("train"))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
