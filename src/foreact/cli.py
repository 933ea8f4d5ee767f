"""The command line: maps verbs to functions, and imports nothing heavy so that `--help` is fast."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any

from foreact.errors import UserError, on_one_line
from foreact.plugs import FAMILIES, add_family

# Import paths below `foreact`. A function named `command` parses for itself: what --size, --task or
# --weights say decides the other options.
VERBS = {
    "demo": (
        "commands.demos.pusht:demo",
        "The main job in minutes: train a little, act, imagine, report.",
    ),
    "demo driving": (
        "commands.demos.driving:demo",
        "From raw driving frames to plans, on drawn roads.",
    ),
    "demo voc": (
        "commands.demos.voc:demo",
        "From a simulator to sampled futures, values and plans.",
    ),
    "data collect": (
        "commands.collect:command",
        "Let an expert act in a simulator and store what it shows.",
    ),
    "data import": (
        "commands.data:import_",
        "Copy recordings of another project into our store.",
    ),
    "data import-d4rl": ("commands.data:import_d4rl", "Copy HDF5 shards of V-D4RL into a store."),
    "data import-opendv": (
        "families.driving.data_verbs:import_opendv",
        "Cut OpenDV's videos into a store.",
    ),
    "data import-nuscenes": (
        "families.driving.data_verbs:import_nuscenes",
        "nuScenes: frames, poses, trajectories.",
    ),
    "data import-nuplan": (
        "families.driving.data_verbs:import_nuplan",
        "nuPlan: frames, poses, trajectories.",
    ),
    "data toy-street": (
        "families.driving.data_verbs:toy_street",
        "Draw a small nuScenes to try things with.",
    ),
    "data remaining": (
        "families.driving.data_verbs:remaining",
        "Windows that a training run has not seen yet.",
    ),
    "data pseudo-depth": (
        "families.driving.pseudo_depth:pseudo_depth",
        "Depth labels for the probe, by any network.",
    ),
    "data check": (
        "commands.data:check",
        "Read windows and report spec, NaN, constant dims, rates.",
    ),
    "data stats": (
        "commands.data:stats",
        "Ranges per dimension; --against a checkpoint's statistics.",
    ),
    "data export-lerobot": (
        "commands.export:export",
        "Write a store as a LeRobotDataset v3.0.",
    ),
    "data pack": ("commands.pack:pack", "Write a store of many files as one .zarr.tar.lz4."),
    "data unpack": (
        "commands.pack:unpack",
        "Extract a packed store; it appears when it is whole.",
    ),
    "data show": ("commands.data:show", "Write a contact sheet and an mp4 of some episodes."),
    "data text": (
        "commands.data:text",
        "List a store's instructions, and how alike an encoder finds them.",
    ),
    "tokenize": (
        "families.codes.tokenize:tokenize",
        "Encode a store's frames once, so that training reads codes.",
    ),
    "submit": (
        "commands.submit:command",
        "Run a command on a SLURM cluster, requeued when preempted.",
    ),
    "generate": (
        "commands.imagine:generate_command",
        "Imagine futures and show them next to the true ones.",
    ),
    "eval closed-loop": (
        "commands.closed_loop:command",
        "Let a policy act in the simulator and score it.",
    ),
    "eval replay": (
        "commands.replay:replay",
        "Play recorded actions again: do states come back?",
    ),
    "eval open-loop": (
        "families.driving.evaluate_open_loop:open_loop",
        "Score a driving model on recorded drives.",
    ),
    "eval video": (
        "commands.imagine:video_command",
        "Compare imagined with true futures: PSNR, SSIM, FID.",
    ),
    "eval probe": (
        "families.driving.probe:probe",
        "What a model's features know: segmentation and depth.",
    ),
    "eval values": (
        "families.voc.evaluate_values:values",
        "Compare VOC's values with true discounted returns.",
    ),
    "eval control": (
        "families.voc.control:control",
        "Plan with VOC, beside cloning and one-step models.",
    ),
    "eval ncap": (
        "families.driving.score_ncap:ncap",
        "The NeuroNCAP table of a tree of simulated runs.",
    ),
    "scaling coord-check": (
        "families.driving.scaling:coord_check",
        "Does muP keep activations' size at any width?",
    ),
    "scaling lr-sweep": (
        "families.driving.scaling:lr_sweep",
        "Is the best learning rate the same at any width?",
    ),
    "scaling laws": (
        "families.driving.scaling:laws",
        "Fit the loss as a function of size and data.",
    ),
    "serve neuroncap": (
        "families.driving.serve_neuroncap:neuroncap",
        "Let a NeuroNCAP simulator ask VaVAM for plans.",
    ),
    "weights list": (
        "commands.weights:list_",
        "The weights of this installation, and the released ones.",
    ),
    "weights get": (
        "commands.weights:get",
        "Download a released model: resumed, checked, recorded.",
    ),
    "weights unpack": (
        "commands.weights:unpack",
        "Extract a release archive, whole or in parts, safely.",
    ),
    "weights pack": (
        "commands.weights:pack",
        "Write files as a release archive, in parts where large.",
    ),
    "weights convert": (
        "commands.convert:command",
        "Turn a released checkpoint into ours, and back.",
    ),
    "weights verify": (
        "commands.weights:verify",
        "Read a checkpoint or released files whole; print hashes.",
    ),
    "doctor": (
        "commands.doctor:doctor",
        "The environment: what is fast here, what each extra unlocks.",
    ),
}


def verbs() -> dict[str, tuple[str, str]]:
    """Every verb -> the import path of its function and what it does, in the order of the usage.

    Families of installed packages are trained too, but their modules are imported only when named.
    """
    training = {}
    for name in [*FAMILIES.built_in, *FAMILIES.added]:
        family = FAMILIES.find(name)
        if family.train is not None:
            training[f"train {family.verb}"] = (family.train, f"Train {family.title}.")
    all_verbs: dict[str, tuple[str, str]] = {}
    for verb, (path, text) in VERBS.items():
        if verb == "submit":
            all_verbs |= training
        all_verbs[verb] = (f"foreact.{path}", text)
    return all_verbs


def usage() -> str:
    lines = [f"  {verb:<22}{text}" for verb, (_, text) in verbs().items()]
    lines += [f"  train {name:<16}From an installed package." for name in FAMILIES.installed()]
    return (
        "usage: foreact VERB [options]      (foreact VERB --help explains a verb)\n\n"
        + "\n".join(lines)
    )


def run(argv: list[str]) -> object:
    """Find the verb at the head of `argv` and call its function with the options that follow.

    `--family my_package.my_model`, anywhere, adds a family that is not installed; `foreact train`
    trains it.
    """
    argv, added_verbs = _take_families(argv)
    if argv[:1] == ["train"] and added_verbs and (len(argv) == 1 or argv[1].startswith("-")):
        argv = ["train", added_verbs[-1], *argv[1:]]
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(usage())
        return None
    known_verbs = verbs()
    for words in (2, 1):
        verb, rest = " ".join(argv[:words]), argv[words:]
        if verb in known_verbs:
            module, _, function = known_verbs[verb][0].partition(":")
            return _call(getattr(importlib.import_module(module), function), verb, rest)
    if argv[0] == "train" and len(argv) > 1 and not argv[1].startswith("-"):
        return _call(add_family(argv[1]).get("train"), "train", argv[2:])
    heads = sorted({verb.split()[0] for verb in known_verbs})
    if argv[0] in heads:
        below = [verb for verb in known_verbs if verb.startswith(argv[0] + " ")]
        raise UserError(f"`foreact {argv[0]}` needs one of: {', '.join(below)}.")
    raise UserError(f"There is no verb '{argv[0]}'; known ones are {', '.join(heads)}.")


def _call(entry: Any, verb: str, args: list[str]) -> object:
    if entry.__name__.endswith("command") or verb.startswith("train"):
        return entry(args)
    import tyro

    return tyro.cli(entry, prog=f"foreact {verb}", args=args)


def _take_families(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split off `--family PATH`; returns the other words and the verbs of the families added."""
    rest, added_verbs = [], []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--family":
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value:
            raise UserError("--family needs the import path of a module that exports FAMILY.")
        added_verbs.append(add_family(value).verb)
    return rest, added_verbs


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"foreact: {on_one_line(str(message))}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `foreact`; exit status 0 done, 2 user error, 130 interrupted."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"foreact: {on_one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("foreact: interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
