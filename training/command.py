"""`exposure train` and `exposure evaluate`."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exposure.assets import CHECKPOINT
from exposure.client.inputs import SUFFIXES as RAW_SUFFIXES
from exposure.client.reach import add_reach_flags, client_for
from exposure.files import sha256
from exposure.noise import CAMERAS, NOISE_MODELS
from exposure.schedule import SERVED_PASSES

from . import cases, evaluate
from .scenes import SUFFIXES, Scenes, listed, pictures_in
from .shots import Range, Shots

if TYPE_CHECKING:  # imported on call, so that the command line starts without torch
    from exposure.networks import CheckpointInfo, Network

    from .loop import Plan, Trainer

HELD_OUT = Path(__file__).with_name("held_out.txt")
EXAMPLES = 8  # crops that reports judge
MEANINGS = {  # of the fields of `Plan`
    "iterations": "updates of the weights, in all",
    "batch": "crops in each",
    "side": "of a crop, in pixels of a plane; a multiple of the network's own, 16 or 32",
    "passes": "of the network on each crop",
    "learning_rate": "in the first half; then halved, and falling to 0 in the last quarter",
    "warm_up": "iterations over which the learning rate rises",
    "averaging": "share of the running average kept each iteration",
    "seed": "of everything random",
    "save_every": "iterations from one save to the next",
    "report_every": "iterations between reports to TensorBoard",
    "workers": "processes that make crops, 0: the one that trains; with a GPU one for each core, up to 8, else 0",
}


def add_train(parser: argparse.ArgumentParser) -> None:
    """The flags of `exposure train`; those of `Plan` bear its names."""
    from .loop import Plan

    parser.add_argument("--photos", type=Path, help="folder of clean pictures; without it dead leaves alone")
    parser.add_argument(
        "--held-out", type=Path, default=HELD_OUT, help="list of names left out (default: training/held_out.txt)"
    )
    parser.add_argument("--leaves", type=float, default=0.3, help="share of crops from dead leaves (default 0.3)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a run found there is continued")
    parser.add_argument("--init", type=Path, help="checkpoint to start from, instead of random weights")
    parser.add_argument("--widen", type=int, default=1, metavar="N", help="give --init N times its channels first")
    parser.add_argument("--concat-origin", action="store_true", help="let later passes see the file itself too")
    parser.add_argument(
        "--widths", type=int, nargs=5, metavar="N", help="channels of the levels (default: 32 64 128 256 512)"
    )
    parser.add_argument("--diffusion", action="store_true", help="train the conditional diffusion baseline instead")
    parser.add_argument("--licence", help="of the weights, for the file's metadata (default: --init's, or unknown)")
    for name, default in vars(Plan()).items():
        flag, meaning = "--" + name.replace("_", "-"), f"{MEANINGS[name]} (default: %(default)s)"
        parser.add_argument(flag, type=type(default), default=default, metavar="N", help=meaning)
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> int:
    """Train, or go on training, and write `unet.safetensors` (or nafnet, or diffusion) into the run's folder."""
    from exposure.networks import load_checkpoint, save_checkpoint

    from .loop import Plan
    from .report import Report, denoised, sampled

    plan = Plan(**{name: getattr(arguments, name) for name in MEANINGS})
    pictures = pictures_in(arguments.photos) if arguments.photos else []
    names = set(listed(arguments.held_out))
    kept = [path for path in pictures if path.name not in names]
    unseen = [path for path in pictures if path.name in names] or kept
    if pictures and not kept:
        raise ValueError(
            f"all pictures of {arguments.photos} are held out by {arguments.held_out}; none is left to train on"
        )
    start = load_checkpoint(arguments.init) if arguments.init else None
    trainer = _trainer(arguments, plan, start, seen=f"{arguments.leaves} {' '.join(path.name for path in kept)}")
    print(f"{len(kept)} pictures, {len(pictures) - len(kept)} held out; from iteration {trainer.iteration}", flush=True)
    if pictures and unseen is kept:
        print(f"{arguments.held_out} names none of them, so the PSNR is of pictures that are trained on: --held-out")
    limits = Range()
    shown = Shots(Scenes(unseen[:EXAMPLES], side=min(128, plan.side), leaves=0, seed=plan.seed + 1), limits)
    result = sampled if arguments.diffusion else denoised
    examples = [shown[index] for index in range(EXAMPLES)]
    report = Report(arguments.out / "tensorboard", examples, result, purge_from=trainer.iteration + 1)
    trainer.run(Shots(Scenes(kept, side=plan.side, leaves=arguments.leaves, seed=plan.seed), limits), report)
    path = arguments.out / f"{type(trainer.average).__name__.lower()}.safetensors"
    save_checkpoint(trainer.average, path, _info(arguments, trainer, limits), for_bf16=True)
    print(f"{path} written", flush=True)
    report.quality(trainer.iteration, trainer.average)  # after, for whatever may befall it
    return 0


def _trainer(arguments: argparse.Namespace, plan: "Plan", start: "Network | None", seen: str) -> "Trainer":
    from exposure.networks import CheckpointInfo
    from exposure.networks.unet import WIDTHS

    from .diffusion import Diffusion, diffusion_losses
    from .loop import Trainer, rollout

    if min(arguments.widths or WIDTHS) < 1:
        raise ValueError(f"--widths is {' '.join(map(str, arguments.widths))}; a level has at least 1 channel")
    told: Any = {
        "seen": seen,
        "start": sha256(arguments.init) if arguments.init else "",
        "before": start.info if start else CheckpointInfo(),
        "licence": arguments.licence or "",
    }
    if not arguments.diffusion:
        return Trainer(_start(arguments, start), plan, arguments.out, rollout, **told)
    if arguments.init or arguments.widen > 1 or arguments.concat_origin:
        raise ValueError("--diffusion starts at random weights; --init, --widen and --concat-origin are not for it")
    return Trainer(Diffusion(arguments.widths or WIDTHS, plan.seed), plan, arguments.out, diffusion_losses, **told)


def _info(arguments: argparse.Namespace, trainer: "Trainer", limits: Range) -> "CheckpointInfo":
    info = replace(trainer.info, training_noise=" and ".join(limits.noise))
    return info if arguments.diffusion else replace(info, photon_unit=trainer.average.photon_unit)


def _start(arguments: argparse.Namespace, given: "Network | None") -> "Network":
    """The network that training begins with. given: that of --init."""
    from exposure.networks import UNet
    from exposure.networks.unet import WIDTHS

    from .start import fresh, widened, with_origin

    if arguments.widen < 1:
        raise ValueError(f"--widen is {arguments.widen}; it must be at least 1")
    if given is not None and arguments.widths:
        raise ValueError("--widths is for random weights; a network of --init has its own, and --widen multiplies them")
    if given is None:
        if arguments.widen > 1:
            raise ValueError("--widen gives the network of --init more channels; without --init, say --widths")
        return fresh(arguments.widths or WIDTHS, arguments.seed, concat_origin=arguments.concat_origin)
    if not isinstance(given, UNet):
        if arguments.widen > 1 or arguments.concat_origin:
            raise ValueError(f"{arguments.init} is no U-Net; --widen and --concat-origin are for U-Nets")
        return given
    network = widened(given, arguments.widen, arguments.seed) if arguments.widen > 1 else given
    return with_origin(network) if arguments.concat_origin else network


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """The flags of `exposure evaluate`, one subcommand for each kind of evidence."""
    kinds = parser.add_subparsers(required=True, metavar="photos | sid | eld | bracket")
    photos = kinds.add_parser("photos", help="low light simulated on a folder of photographs or clean RAW files")
    photos.add_argument("folder", type=Path, help="of pictures, or clean RAW files")
    photos.add_argument("--only", type=Path, help="list of file names to use, for example training/held_out.txt")
    photos.add_argument(
        "--camera", choices=sorted(CAMERAS), default="SonyA7S2", help="camera to simulate (default: %(default)s)"
    )
    photos.add_argument("--iso", type=float, default=3200.0, help="of that camera (default: 3200)")
    photos.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[100.0, 250.0, 300.0],
        help="how many times too short (default: 100 250 300)",
    )
    photos.add_argument("--noise", choices=NOISE_MODELS, default="P+g", help="noise model (default: %(default)s)")
    photos.add_argument("--shrink", type=int, default=2, help="factor by which photographs are shrunk (default 2)")
    photos.set_defaults(cases=_photos)
    sid = kinds.add_parser("sid", help="pairs of short and long exposures, as in the SID data set")
    sid.add_argument("folder", type=Path, help="where short/ and long/ lie")
    sid.add_argument("--list", type=Path, help='pairs, one a line: "short/A.ARW long/B.ARW", or the names alone')
    sid.set_defaults(cases=lambda given, out: cases.paired(given.folder, given.list, gain=given.gain, unusable=out))
    eld = kinds.add_parser("eld", help="scenes as in the ELD data set")
    eld.add_argument("folder", type=Path, help="with a folder for each camera or scene")
    eld.set_defaults(cases=lambda given, out: cases.eld(given.folder, gain=given.gain, unusable=out))
    bracket = kinds.add_parser("bracket", help="several real exposures of one scene")
    bracket.add_argument("files", type=Path, nargs="+", help="RAW files; the longest exposure is the truth")
    bracket.set_defaults(cases=lambda given, _: cases.bracketed(given.files, gain=given.gain))
    for kind in (photos, sid, eld, bracket):
        kind.add_argument(
            "--checkpoint", type=Path, default=CHECKPOINT, help="what is evaluated (default: the shipped network)"
        )
        kind.add_argument(
            "--independent", action="store_true", help="judge photons drawn as published too (from 3 passes on)"
        )
        kind.add_argument(
            "--as-published",
            action="store_true",
            help="judge the published evaluation too: new photons in every step, every estimate fitted to the truth",
        )
        kind.add_argument("--one-pass", type=Path, metavar="FILE", help="judge a network trained for one pass too")
        kind.add_argument("--diffusion", type=Path, metavar="FILE", help="judge a diffusion baseline too")
        kind.add_argument(
            "--steps", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20, 50], help="DDIM steps of --diffusion"
        )
        kind.add_argument(
            "--server", metavar="ADDRESS", help="judge this server's engine, too; it must serve --checkpoint"
        )
        add_reach_flags(kind.add_argument_group("the server"))
        kind.add_argument(
            "--passes", type=int, nargs="+", default=[1, 2, 3], help="numbers of passes to evaluate (default: 1 2 3)"
        )
        kind.add_argument("--out", type=Path, help="folder for scores.json and plots")
        if kind is not photos:
            kind.add_argument("--gain", type=float, help="K in DN per electron, of files that do not tell theirs")
    parser.set_defaults(run=run_evaluation)


def run_evaluation(arguments: argparse.Namespace) -> int:
    """Score, print the table, and write JSON and plots where asked; 1 where a case had to be left out."""
    _check(arguments)
    left_out: list[str] = []

    def leave_out(error: ValueError) -> None:
        left_out.append(str(error))
        print(f"exposure: {error}; it is left out", file=sys.stderr, flush=True)

    rows = [evaluate.Row("definition", evaluate.definition(arguments.checkpoint), arguments.passes)]
    if arguments.independent:
        independent = evaluate.definition(arguments.checkpoint, noise="independent")
        rows.append(evaluate.Row("independent draws", independent, [n for n in arguments.passes if n > 2]))
    if arguments.as_published:
        published = evaluate.definition(arguments.checkpoint, noise="independent", aligned=True)
        rows.append(evaluate.Row("as published", published, arguments.passes))
    if arguments.one_pass:
        rows.append(evaluate.Row("trained for one pass", evaluate.definition(arguments.one_pass), [1]))
    if arguments.diffusion:
        rows.append(evaluate.Row("diffusion, DDIM", evaluate.diffused(arguments.diffusion), arguments.steps))
    with contextlib.ExitStack() as block:
        if arguments.server:
            digest = sha256(arguments.checkpoint)
            client = block.enter_context(client_for(arguments))
            rows.insert(1, evaluate.Row("served", evaluate.served(client, digest), arguments.passes))
        scores: list[evaluate.Score] = []
        ended = True
        try:
            scores.extend(evaluate.evaluate(arguments.cases(arguments, leave_out), rows, leave_out))
            ended = False
        finally:
            if scores:
                _tell(arguments, scores, {"left_out": left_out, "ended_early": ended})
    if not scores and not left_out:
        raise ValueError(
            "no case was found; sid looks for short/ and long/ in its folder, eld for scene-N folders below it"
        )
    return 1 if left_out else 0


def _tell(arguments: argparse.Namespace, scores: "list[evaluate.Score]", lacks: dict[str, object]) -> None:
    """The table, and JSON and plots where asked. lacks: what the scores are not of."""
    print(evaluate.table(scores))
    if arguments.out:
        from .plots import plot

        arguments.out.mkdir(parents=True, exist_ok=True)
        given = vars(arguments).items()  # of paths the last part: others have them elsewhere
        about = {n: value.name if isinstance(value, Path) else str(value) for n, value in given if not callable(value)}
        about.pop("header")  # it may hold a password
        files = {name: getattr(arguments, name) for name in ("checkpoint", "one_pass", "diffusion")}
        digests = {f"{name}_sha256": sha256(file) for name, file in files.items() if file}
        evaluate.write(scores, {**about, **digests, **lacks}, arguments.out / "scores.json")
        plot(scores, arguments.out)


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a number that nothing can be judged with."""
    for name in ("iso", "ratios", "shrink", "gain", "passes", "steps"):
        given = getattr(arguments, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"--{name} is {value:g}; it must be positive and finite")
    if arguments.server and (unserved := set(arguments.passes) - set(SERVED_PASSES)):
        raise ValueError(f"--passes is {min(unserved)}; a server has {SERVED_PASSES}")
    if arguments.independent and max(arguments.passes) < 3:
        raise ValueError("--independent changes nothing below 3 passes, where photons are drawn once; see --passes")


def _photos(arguments: argparse.Namespace, _: object) -> Iterator[cases.Case]:
    pictures = pictures_in(arguments.folder, SUFFIXES | RAW_SUFFIXES)
    if arguments.only:
        names = set(listed(arguments.only))
        if absent := sorted(names - {path.name for path in pictures}):
            raise ValueError(f"{arguments.only} names {absent[0]}, which is not in {arguments.folder}")
        pictures = [path for path in pictures if path.name in names]
    return cases.simulated(
        pictures,
        camera=arguments.camera,
        iso=arguments.iso,
        ratios=arguments.ratios,
        noise=arguments.noise,
        shrink=arguments.shrink,
    )
