"""`exposure train` and `exposure evaluate`."""

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from exposure.assets import CHECKPOINT
from exposure.noise import CAMERAS, NOISE_MODELS

from . import cases, evaluate
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
    parser.add_argument("--widen", type=int, default=1, metavar="N", help="give --init N times its channels first")
    parser.add_argument("--widths", type=int, nargs=5, metavar="N", help="channels of the five levels")
    parser.add_argument("--licence", default="unknown", help="licence of the weights, for the file's metadata")
    for field in fields(Plan):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, metavar="N")
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> int:
    """Train, or go on training, and write `unet.safetensors` into the run's folder."""
    from exposure.networks import CheckpointInfo, Network, UNet, load_checkpoint, save_checkpoint
    from exposure.networks.unet import WIDTHS

    from .loop import Plan, Trainer
    from .report import Report
    from .start import fresh, widened

    plan = Plan(**{field.name: getattr(arguments, field.name) for field in fields(Plan)})
    pictures = pictures_in(arguments.photos) if arguments.photos else []
    names = set(arguments.held_out.read_text().splitlines())
    kept = [path for path in pictures if path.name not in names]
    unseen = [path for path in pictures if path.name in names] or kept
    network: Network = fresh(arguments.widths or WIDTHS, plan.seed)
    if arguments.init:
        network = load_checkpoint(arguments.init)
        if arguments.widen > 1 and isinstance(network, UNet):
            network = widened(network, arguments.widen)
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
    return 0


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """The flags of `exposure evaluate`, one subcommand for each kind of evidence."""
    kinds = parser.add_subparsers(required=True, metavar="photos | sid | eld | bracket")
    photos = kinds.add_parser("photos", help="low light simulated on a folder of photographs")
    photos.add_argument("folder", type=Path)
    photos.add_argument("--only", type=Path, help="list of file names to use, for example training/held_out.txt")
    photos.add_argument("--camera", choices=sorted(CAMERAS), default="SonyA7S2")
    photos.add_argument("--iso", type=float, default=3200.0)
    photos.add_argument("--ratios", type=float, nargs="+", default=[100.0, 250.0, 300.0])
    photos.add_argument("--noise", choices=NOISE_MODELS, default="P+g")
    photos.add_argument("--shrink", type=int, default=2, help="factor by which photographs are shrunk (default 2)")
    photos.set_defaults(cases=_photos)
    sid = kinds.add_parser("sid", help="pairs of short and long exposures, as in the SID data set")
    sid.add_argument("folder", type=Path, help="where short/ and long/ lie")
    sid.add_argument("--list", type=Path, help='pairs, one a line: "short/A.ARW long/B.ARW"')
    sid.set_defaults(cases=lambda given: cases.paired(given.folder, given.list, gain=given.gain))
    eld = kinds.add_parser("eld", help="scenes as in the ELD data set")
    eld.add_argument("folder", type=Path)
    eld.set_defaults(cases=lambda given: cases.eld(given.folder, gain=given.gain))
    bracket = kinds.add_parser("bracket", help="several real exposures of one scene")
    bracket.add_argument("files", type=Path, nargs="+")
    bracket.set_defaults(cases=lambda given: cases.bracketed(given.files, gain=given.gain))
    for kind in (photos, sid, eld, bracket):
        kind.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
        kind.add_argument("--server", metavar="ADDRESS", help="judge this server's engine too")
        kind.add_argument("--passes", type=int, nargs="+", default=[1, 2, 3])
        kind.add_argument("--out", type=Path, help="folder for scores.json and plots")
        if kind is not photos:
            kind.add_argument("--gain", type=float, help="K in DN per electron, where the files do not tell")
    parser.set_defaults(run=run_evaluation)


def run_evaluation(arguments: argparse.Namespace) -> int:
    """Score, print the table, and write JSON and plots where asked."""
    denoisers = {"definition": evaluate.definition(arguments.checkpoint)}
    if arguments.server:
        denoisers["served"] = evaluate.served(arguments.server)
    scores = evaluate.evaluate(arguments.cases(arguments), denoisers, arguments.passes)
    if not scores:
        raise ValueError("there is nothing to evaluate: no case was found")
    print(evaluate.table(scores))
    if arguments.out:
        from .plots import plot

        arguments.out.mkdir(parents=True, exist_ok=True)
        about = {name: str(value) for name, value in vars(arguments).items() if not callable(value)}
        digest = hashlib.sha256(arguments.checkpoint.read_bytes()).hexdigest()
        evaluate.write(scores, {**about, "checkpoint_sha256": digest}, arguments.out / "scores.json")
        plot(scores, arguments.out)
    return 0


def _photos(arguments: argparse.Namespace) -> Iterator[cases.Case]:
    pictures = pictures_in(arguments.folder)
    if arguments.only:
        names = set(arguments.only.read_text().splitlines())
        pictures = [path for path in pictures if path.name in names]
    return cases.simulated(
        pictures,
        camera=arguments.camera,
        iso=arguments.iso,
        ratios=arguments.ratios,
        noise=arguments.noise,
        shrink=arguments.shrink,
    )
