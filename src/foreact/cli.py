"""Command line: verb -> function, nothing else. Every verb is a typed function in `foreact.recipes`."""

from __future__ import annotations

import importlib
import os
import sys
import warnings

from foreact.types import UserError

VERBS = {
    "demo": ("foreact.recipes.demo:demo", "The main job in minutes: train a little, act, imagine, report."),
    "demo driving": ("foreact.recipes.demo_driving:demo", "From raw driving frames to plans, on drawn roads."),
    "demo voc": ("foreact.recipes.demo_voc:demo", "From a simulator to sampled futures, values and plans."),
    "data collect": ("foreact.recipes.data:collect", "Let an expert act in a simulator and store what it shows."),
    "data import": ("foreact.recipes.data:import_", "Copy a replay-buffer zarr of another project into our store."),
    "data import-d4rl": ("foreact.recipes.data:import_d4rl", "Copy HDF5 shards of V-D4RL into a store."),
    "data import-opendv": ("foreact.recipes.driving_data:import_opendv", "Cut OpenDV's videos into a store."),
    "data import-nuscenes": ("foreact.recipes.driving_data:import_nuscenes", "nuScenes: frames, poses, trajectories."),
    "data import-nuplan": ("foreact.recipes.driving_data:import_nuplan", "nuPlan: frames, poses, trajectories."),
    "data toy-street": ("foreact.recipes.driving_data:toy_street", "Draw a small nuScenes to try things with."),
    "data remaining": ("foreact.recipes.driving_data:remaining", "Windows that a training run has not seen yet."),
    "data pseudo-depth": ("foreact.recipes.probe:pseudo_depth", "Depth labels for the probe, by any network."),
    "data check": ("foreact.recipes.data:check", "Read windows and report spec, NaN, constant dims, rates."),
    "data stats": ("foreact.recipes.data:stats", "Ranges per dimension; --against a checkpoint's statistics."),
    "data show": ("foreact.recipes.data:show", "Write a contact sheet and an mp4 of some episodes."),
    "tokenize": ("foreact.recipes.tokenize:tokenize", "Encode a store's frames once, so that training reads codes."),
    "train kl-vae": ("foreact.recipes.kl_vae:command", "Train the autoencoder with continuous latents."),
    "train vq": ("foreact.recipes.vq:command", "Train the image tokenizer with a codebook."),
    "train vqkd": ("foreact.recipes.vqkd:command", "Train VQ-KD: codes of what a teacher network sees."),
    "train musik": ("foreact.recipes.musik:command", "Train MUSIK: codes of what actions can change."),
    "train uva": ("foreact.recipes.uva:command", "Train the Unified Video Action model."),
    "train vavim": ("foreact.recipes.vavim:command", "Train VaViM, the video model of driving."),
    "train vavam": ("foreact.recipes.vavam:command", "Train VaVAM, which drives from a VaViM."),
    "train voc": ("foreact.recipes.voc:command", "Train a Video Occupancy Model: the discounted future."),
    "train bc": ("foreact.recipes.cloning:command", "Train behaviour cloning on codes."),
    "submit": ("foreact.recipes.submit:command", "Run a command on a SLURM cluster, requeued when preempted."),
    "generate": ("foreact.recipes.by_family:generate_command", "Imagine futures and show them next to the true ones."),
    "eval closed-loop": ("foreact.recipes.evaluate:closed_loop", "Let a policy act in the simulator and score it."),
    "eval open-loop": ("foreact.recipes.evaluate_driving:open_loop", "Score a driving model on recorded drives."),
    "eval video": ("foreact.recipes.by_family:video_command", "Compare imagined with true futures: PSNR, SSIM, FID."),
    "eval probe": ("foreact.recipes.probe:probe", "What a model's features know: segmentation and depth."),
    "eval values": ("foreact.recipes.evaluate_values:values", "Compare VOC's values with true discounted returns."),
    "eval control": ("foreact.recipes.control:control", "Plan with VOC, beside cloning and one-step models."),
    "eval ncap": ("foreact.recipes.ncap:ncap", "The NeuroNCAP table of a tree of simulated runs."),
    "scaling coord-check": ("foreact.recipes.scaling:coord_check", "Does muP keep activations' size at any width?"),
    "scaling lr-sweep": ("foreact.recipes.scaling:lr_sweep", "Is the best learning rate the same at any width?"),
    "scaling laws": ("foreact.recipes.scaling:laws", "Fit the loss as a function of size and data."),
    "serve neuroncap": ("foreact.recipes.serve:neuroncap", "Let a NeuroNCAP simulator ask VaVAM for plans."),
    "weights list": ("foreact.recipes.weights:list_", "The weights of this installation, and the released ones."),
    "weights get": ("foreact.recipes.weights:get", "Download a released model: resumed, checked, recorded."),
    "weights unpack": ("foreact.recipes.weights:unpack", "Extract a release archive, whole or in parts, safely."),
    "weights pack": ("foreact.recipes.weights:pack", "Write files as a release archive, in parts where large."),
    "weights convert": ("foreact.recipes.weights:convert", "Turn a released checkpoint into ours, and back."),
    "weights verify": ("foreact.recipes.weights:verify", "Read a checkpoint or released files whole; print hashes."),
    "doctor": ("foreact.recipes.doctor:doctor", "The environment: what is fast here, what each extra unlocks."),
}


def usage() -> str:
    lines = [f"  {verb:<22}{text}" for verb, (_, text) in VERBS.items()]
    return "usage: foreact VERB [options]      (foreact VERB --help explains a verb)\n\n" + "\n".join(lines)


def run(argv: list[str]) -> object:
    """Find the verb at the head of `argv` and call its function with the options that follow."""
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(usage())
        return None
    for words in (2, 1):
        verb, rest = " ".join(argv[:words]), argv[words:]
        if verb in VERBS:
            module, _, function = VERBS[verb][0].partition(":")
            entry = getattr(importlib.import_module(module), function)
            if function.endswith("command"):  # these parse for themselves: what --size, --task or --weights say decides
                return entry(rest)
            import tyro

            return tyro.cli(entry, prog=f"foreact {verb}", args=rest)
    known = sorted({verb.split()[0] for verb in VERBS})
    if argv[0] in known:
        family = [verb for verb in VERBS if verb.startswith(argv[0] + " ")]
        raise UserError(f"`foreact {argv[0]}` needs one of: {', '.join(family)}.")
    raise UserError(f"There is no verb '{argv[0]}'; known ones are {', '.join(known)}.")


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"foreact: {message}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `foreact`. Exit status: 0 done, 2 a mistake the user can mend, 130 interrupted."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"foreact: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("foreact: interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
