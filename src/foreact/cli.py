"""Command line: verb -> function, nothing else. Every verb is a typed function in `foreact.recipes`."""

from __future__ import annotations

import importlib
import os
import sys

from foreact.types import UserError

VERBS = {
    "demo": ("foreact.recipes.demo:demo", "The main job in minutes: train a little, act, imagine, report."),
    "data collect": ("foreact.recipes.data:collect", "Let an expert act in a simulator and store what it shows."),
    "data import": ("foreact.recipes.data:import_", "Copy a replay-buffer zarr of another project into our store."),
    "data check": ("foreact.recipes.data:check", "Read windows and report spec, NaN, constant dims, rates."),
    "data stats": ("foreact.recipes.data:stats", "Ranges per dimension; --against a checkpoint's statistics."),
    "data show": ("foreact.recipes.data:show", "Write a contact sheet and an mp4 of some episodes."),
    "tokenize": ("foreact.recipes.tokenize:tokenize", "Encode a store's frames once, so that training reads latents."),
    "train kl-vae": ("foreact.recipes.kl_vae:command", "Train the image autoencoder."),
    "train uva": ("foreact.recipes.uva:command", "Train the Unified Video Action model."),
    "generate": ("foreact.recipes.generate:generate", "Imagine futures and show them next to the true frames."),
    "eval closed-loop": ("foreact.recipes.evaluate:closed_loop", "Let a policy act in the simulator and score it."),
    "eval video": ("foreact.recipes.evaluate:video", "Compare imagined with true futures: PSNR and SSIM."),
    "weights list": ("foreact.recipes.weights:list_", "The weights that come with this installation."),
    "weights convert": ("foreact.recipes.weights:convert", "Turn a released checkpoint into ours, safely."),
    "weights verify": ("foreact.recipes.weights:verify", "Read a checkpoint whole; print counts and hashes."),
    "doctor": ("foreact.recipes.doctor:doctor", "Print the environment and what each extra unlocks."),
}


def usage() -> str:
    lines = [f"  {verb:<18}{text}" for verb, (_, text) in VERBS.items()]
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
            if verb.startswith("train "):  # these parse for themselves: their defaults depend on --task and --size
                return entry(rest)
            import tyro

            return tyro.cli(entry, prog=f"foreact {verb}", args=rest)
    known = sorted({verb.split()[0] for verb in VERBS})
    if argv[0] in known:
        family = [verb for verb in VERBS if verb.startswith(argv[0] + " ")]
        raise UserError(f"`foreact {argv[0]}` needs one of: {', '.join(family)}.")
    raise UserError(f"There is no verb '{argv[0]}'; known ones are {', '.join(known)}.")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `foreact`. Exit status: 0 done, 2 a mistake the user can mend, 130 interrupted."""
    try:
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
