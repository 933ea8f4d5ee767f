"""`foreact train voc`: VOC on stored codes, or along with their tokenizer from pixels."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from foreact.checkpoints.format import Checkpoint, TokenizerRef, load_checkpoint, save_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.checkpoints.start import start_from, weights_of
from foreact.checkpoints.tokenizers import LoadedTokenizer, open_tokenizer
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.windows.augment import RandomShift
from foreact.data.windows.future import FutureWindows
from foreact.data.windows.loader import WindowDataset, Windows
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.families.codes import train_musik as musik
from foreact.families.codes import train_vq as vq
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.from_pixels import JointVOC
from foreact.families.voc.model import VOC
from foreact.runs.inputs import Inputs, Split
from foreact.runs.options import Episodes, TrainingRun
from foreact.runs.parse import checked
from foreact.runs.run import check_run, pick_device
from foreact.runs.stores import ensure_codes, open_task_store
from foreact.runs.training import begin, publish, train_on
from foreact.runs.validation import ValidationLoss
from foreact.runs.verb import TrainingVerb
from foreact.tasks import find_task
from foreact.tokenizers.images import prepare
from foreact.tokenizers.musik import Musik, MusikConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.train.config import TrainConfig
from foreact.train.ema import EMAConfig
from foreact.types import Codes, StreamSpec

Kind = Literal["vae", "dino", "musik"]
FAMILY: dict[str, str] = {"vae": "vq", "dino": "vqkd", "musik": "musik"}
"""Family of the tokenizer that makes each kind of codes."""

Size = Literal["pocket", "small", "reference"]


@dataclass(frozen=True, kw_only=True)
class VOCRun(TrainingRun, Episodes):
    """Train a video occupancy model on a tokenizer's codes, or along with it from pixels."""

    size: Size = "pocket"
    """pocket (two cores), small (as the authors meant) or reference (as their code trains).

    reference has their sampling, accumulation and schedule too. Sets the defaults below.
    """
    codes: Kind = "vae"
    """vae (vq), dino (vqkd) or musik: which kind of tokenizer."""
    task: str = "cheetah-run"
    data: Path | None = None
    """Store or folder of HDF5 shards to learn from; None: the task's own, data/<task>.zarr."""
    tokenizer: str | None = None
    """Weights of the tokenizer; None: one is trained along.

    Codes that a store lacks are made once and kept in it.
    """
    joint: bool = False
    """Train the tokenizer along, starting from --tokenizer."""
    freeze_after: int | None = None
    """Joint training: steps after which the tokenizer stays as it is; None: never."""
    init: str | None = None
    """Weights of a VOC of the same shape to start from, such as converted ones."""
    actions: bool = False
    """Condition the model on the first actions (model.action_steps of them), to plan with it."""
    out: Path = Path("runs/voc")
    vq: VQConfig = vq.SMALL
    """The tokenizer that is trained along with --codes vae."""
    musik: MusikConfig = musik.SMALL
    """The same with --codes musik."""
    model: VOCConfig = field(default_factory=VOCConfig)
    """Vocab, code_dim, grid, actions and camera are taken from the tokenizer and the data."""


def recipe(size: Size = "pocket", codes: Kind = "vae") -> VOCRun:
    """The defaults for a size and a kind of codes.

    The authors' code asks for width 512 (128 for DINO) and, but for DINO, for attention dropout 0.2
    under names that their library ignores, so that 768 and 0.1 were trained; "small" is what they
    meant. "reference" replays the rest too: targets drawn among the 50 likeliest codes with dropout
    on; for VQ-VAE and MUSIK codes, gradients of two batches summed, and half of the schedule.
    """
    dino = codes == "dino"
    frames = 2 if dino else 3
    shared: dict[str, Any] = {
        "frames": frames,
        "feature_order": "tokens_first" if dino else "channels_first",
    }
    model = VOCConfig(
        width=128, heads=4, layers=3, dropout=0.1, frames=2, feature_order=shared["feature_order"]
    )
    settings = TrainConfig(
        steps=2000,
        batch_size=64,
        lr=1e-3,
        betas=(0.9, 0.999),
        weight_decay=0.1,
        warmup=100,
        save_every=500,
        eval_every=500,
        best_k=0,
        ema=EMAConfig(enabled=False),
    )
    if size != "pocket":
        heads, dropout = (4, 0.1) if dino else (8, 0.2)
        model = VOCConfig(
            width=128 if dino else 512,
            heads=heads,
            dropout=dropout,
            attention_dropout=dropout,
            **shared,
        )
        settings = dataclasses.replace(settings, steps=100_000, batch_size=32, lr=3e-4, warmup=5000)
        settings = dataclasses.replace(settings, save_every=5000, eval_every=5000)
    if size == "reference":
        model = dataclasses.replace(
            model, width=768, attention_dropout=0.1, target_top_k=50, target_dropout=True
        )
        settings = dataclasses.replace(settings, clip_grad=None, precision="fp32")
        if not dino:
            settings = dataclasses.replace(
                settings,
                steps=50_000,
                schedule_steps=100_000,
                accumulate=2,
                accumulation="sum_first_alone",
            )
    return VOCRun(size=size, codes=codes, model=model, train=settings)


@dataclass(frozen=True)
class TrainingSetup:
    """What a run trains on: windows, the model, and the codes it reads."""

    model: VOC | JointVOC
    training: Windows
    validation: Windows
    codes: str


def train_voc(run: VOCRun) -> Path:
    """Train; returns the folder of the weights, `run.out/weights`, which embed the tokenizer."""
    _check(run)
    task = find_task(run.task)
    store = open_task_store(task, run.data)
    device = pick_device(run.device)
    check_run(run, device)  # before codes are made for it
    torch.manual_seed(run.train.seed)
    loaded = _tokenizer(run, device)
    inputs = Inputs.of(run)
    split = inputs.split(store, run.val_ratio)
    inputs.note("tokenizer", None if loaded is None else loaded.hash)
    init = None if run.init is None else weights_of(run.init, "voc")
    inputs.start("init", init)
    joint = run.joint or loaded is None
    setup = (
        _from_pixels(run, store, split, task.camera, loaded)
        if joint
        else _stored(run, store, split, task.camera, loaded, init, device)
    )
    evaluator = ValidationLoss(
        setup.validation, at_most=512, batch_size=min(64, run.train.batch_size)
    )
    voc = setup.model.voc if isinstance(setup.model, JointVOC) else setup.model
    config = voc.config
    run = begin(
        run,
        device,
        f"Training VOC, size '{run.size}'",
        data=f"{store.path}: {len(setup.training)} windows to train on, "
        f"{len(setup.validation)} to validate",
        codes=f"{setup.codes}; {config.frames} frames of {config.grid[0]} x {config.grid[1]}, "
        f"{config.vocab} codes",
        model=f"{sum(p.numel() for p in voc.gpt.parameters()):,} parameters",
        gammas=", ".join(f"{g:g}" for g in config.gammas) + f"; {config.bootstrap_steps}-step "
        "targets",
        condition=f"{config.action_steps} actions" if config.actions else "none",
        start=run.init or "random weights",
    )

    def export(state: Mapping[str, Tensor], path: Path) -> None:
        _export(path, run, setup.model, state, store.spec, loaded)

    result = train_on(
        setup.training,
        setup.model,
        run,
        verb="train voc",
        inputs=inputs,
        evaluators=[evaluator],
        export=export,
        device=device,
    )
    card = {
        "command": VERB.command(run),
        "shadows": store.attrs.get("shadows"),
    }
    # One that was trained along lies in the exported weights already.
    embedded = None if joint else resolve(str(run.tokenizer))
    return publish(run, result, config=config, inputs=inputs, card=card, tokenizer=embedded)


def _check(run: VOCRun) -> None:
    """Refuse combinations that would leave an option without effect."""
    joint = run.joint or run.tokenizer is None
    if run.codes == "dino" and joint:
        raise UserError(
            "DINO codes come from a VQ-KD tokenizer that is there already; name one with "
            "--tokenizer, and leave out --joint: `foreact train vqkd` trains one, `foreact "
            "weights convert` reads the released file."
        )
    if run.model.action_steps != 1 and not run.actions:
        raise UserError(
            "--model.action-steps is for a model conditioned on actions; leave it "
            "out, or add --actions."
        )
    if run.init is not None and joint:
        raise UserError(
            "--init starts from a VOC whose codes are there; name their tokenizer, without --joint."
        )
    if run.freeze_after is not None and not joint:
        raise UserError(
            "--freeze-after is for a tokenizer that is trained along; leave it out, or add --joint."
        )
    for kind, config, default in (("vae", run.vq, vq.SMALL), ("musik", run.musik, musik.SMALL)):
        if config != default and (run.codes != kind or run.tokenizer is not None):
            name = "vq" if kind == "vae" else kind
            raise UserError(
                f"The options --{name}.* describe a new tokenizer, trained along with --codes "
                f"{kind}; leave them out."
            )


def _tokenizer(run: VOCRun, device: torch.device) -> LoadedTokenizer | None:
    if run.tokenizer is None:
        return None
    loaded = open_tokenizer(run.tokenizer, device)
    family = load_checkpoint(resolve(run.tokenizer)).family
    if family != FAMILY[run.codes] or not isinstance(loaded.tokenizer, Codes):
        raise UserError(
            f"--codes {run.codes} expects a {FAMILY[run.codes]} tokenizer, {run.tokenizer} is a "
            f"{family}; name another."
        )
    return loaded


def fitted(run: VOCRun, camera: str, codes: Codes, spec: StreamSpec) -> VOCConfig:
    """The model's config with what the tokenizer and the data decide.

    Raises:
        UserError: the run says otherwise, or wants actions that the data do not have.
    """
    assert codes.vocab is not None
    if run.actions and spec.action is None:
        raise UserError(
            "--actions conditions the model on actions, and the data have none; leave it out."
        )
    derived = {
        "vocab": codes.vocab,
        "code_dim": codes.codebook.shape[1],
        "grid": tuple(codes.grid),
        "camera": camera,
        "actions": spec.action.dim if run.actions and spec.action is not None else 0,
    }
    return resolved(run.model, derived)


def resolved(config: Any, derived: Mapping[str, Any]) -> Any:
    """The config with values derived from tokenizer and data, which options may only repeat."""
    for name, value in derived.items():
        option = getattr(config, name)
        if option not in (value, getattr(type(config)(), name)):
            raise UserError(
                f"--model.{name.replace('_', '-')} says {option}, tokenizer and data have {value}; "
                "leave it out."
            )
    return dataclasses.replace(config, **derived)


def window(config: VOCConfig, kind: Literal["tokens", "video"], *, inverse: bool = False) -> Window:
    """What the model learns from: a present stack, n later frames with rewards, and actions.

    An episode's first frame stands in for those before it. Its last step has no action, so that
    actions end before it.

    Args:
        config: of the model.
        kind: codes or pixels.
        inverse: whether an inverse model wants the first action, even if the model is not
            conditioned on any.
    """
    n, m = config.bootstrap_steps, config.action_steps
    actions = tuple(range(n + m)) if config.actions else (0,) if inverse else ()
    frames: dict[str, Any] = {kind: {config.camera: tuple(range(1 - config.frames, n + 1))}}
    return Window(
        **frames,
        rewards=tuple(range(1, n + 1)),
        actions=actions,
        span=(0, max(n, len(actions))),
    )


def normalizer(spec: StreamSpec) -> Normalizer | None:
    """Actions as they are: those of DeepMind Control lie in [-1, 1] by their spec."""
    if spec.action is None:
        return None
    eye = torch.eye(2, spec.action.dim).numpy()
    return Normalizer.fit({"action": eye}, "identity")


def _stored(
    run: VOCRun,
    store: EpisodeStore,
    split: Split,
    camera: str,
    loaded: LoadedTokenizer | None,
    init: Checkpoint | None,
    device: torch.device,
) -> TrainingSetup:
    """Windows of codes that lie in the store, made first where they are missing."""
    assert loaded is not None
    assert isinstance(loaded.tokenizer, Codes)
    if not store.spec.has_reward:
        raise UserError(f"VOC learns from rewards, and {store.label} has none; use another store.")
    ensure_codes(store, camera, loaded, device=device)
    config = fitted(run, camera, loaded.tokenizer, store.spec)
    model = VOC(config)
    model.set_codebook(loaded.tokenizer.codebook)
    if init is not None:
        start_from(model, init, tokenizer=loaded.hash)
    training, validation = (
        WindowDataset(store, window(config, "tokens"), side, normalizer(store.spec))
        for side in (split.training, split.validation)
    )
    return TrainingSetup(model, training, validation, f"{run.codes}, stored, of {run.tokenizer}")


def _from_pixels(
    run: VOCRun, store: EpisodeStore, split: Split, camera: str, loaded: LoadedTokenizer | None
) -> TrainingSetup:
    """Windows of pixels, and a tokenizer that learns from them as well."""
    if loaded is None and store.has(f"tokens_{camera}"):
        warnings.warn(
            f"The codes that {store.label} holds are not used: without --tokenizer a new tokenizer "
            "is trained along; name the one that made them to learn from them.",
            stacklevel=2,
        )
    tokenizer: Any
    if loaded is not None:
        tokenizer = cast(Any, loaded.tokenizer).train()
        if isinstance(tokenizer, Musik) and tokenizer.config.frames != run.model.frames:
            raise UserError(
                f"{run.tokenizer} learns from stacks of {tokenizer.config.frames} frames, "
                f"--model.frames says {run.model.frames}; give the same."
            )
    elif run.codes == "vae":
        tokenizer = VQTokenizer(run.vq)
    else:
        if store.spec.action is None:
            raise UserError(
                f"MUSIK learns its codes from actions, and {store.path} has none; take --codes vae."
            )
        tokenizer = Musik(
            dataclasses.replace(run.musik, actions=store.spec.action.dim, frames=run.model.frames)
        )
    config = fitted(run, camera, tokenizer, store.spec)
    sides = (split.training, split.validation)
    preprocessing: Any = getattr(tokenizer.config, "preprocessing", "symmetric")
    preprocess = partial(prepare, size=tokenizer.config.image_size, preprocessing=preprocessing)
    model = JointVOC(VOC(config), tokenizer, preprocess, freeze_after=run.freeze_after)
    pixel_window = window(config, "video", inverse=run.codes == "musik")
    datasets: list[Windows] = []
    for episodes, augment in zip(sides, (RandomShift(), None), strict=True):
        if run.codes == "musik":
            dataset = WindowDataset(store, pixel_window, episodes, normalizer(store.spec))
            datasets.append(FutureWindows(dataset, frames=config.frames, augment=augment))
        else:
            datasets.append(
                WindowDataset(store, pixel_window, episodes, normalizer(store.spec), augment)
            )
    origin = "trained along" if loaded is None else f"trained along from {run.tokenizer}"
    return TrainingSetup(model, datasets[0], datasets[1], f"{run.codes}, {origin}")


def _export(
    path: Path,
    run: VOCRun,
    model: nn.Module,
    state: Mapping[str, Tensor],
    spec: StreamSpec,
    loaded: LoadedTokenizer | None,
) -> None:
    """Write a checkpoint, with the tokenizer where it learns too, else a reference to it."""
    if isinstance(model, JointVOC):
        voc_state, tokenizer_state = model.split_state(state)
        tokenizer_path = path.with_name(f"{path.name}-tokenizer")
        save_checkpoint(
            tokenizer_path,
            family=FAMILY[run.codes],
            config=model.tokenizer.config,
            state=tokenizer_state,
            spec=spec,
        )
        save_checkpoint(
            path,
            family="voc",
            config=model.voc.config,
            state=voc_state,
            spec=spec,
            tokenizer=tokenizer_path,
        )
        shutil.rmtree(tokenizer_path)
        return
    assert isinstance(model, VOC)
    assert loaded is not None
    source = TokenizerRef(family=FAMILY[run.codes], hash=loaded.hash)
    save_checkpoint(
        path, family="voc", config=model.config, state=state, spec=spec, tokenizer=source
    )


def _defaults(chosen: dict[str, str]) -> VOCRun:
    return recipe(**checked(chosen, size=get_args(Size), codes=get_args(Kind)))


VERB = TrainingVerb(name="train voc", cls=VOCRun, recipe=_defaults, choices=("size", "codes"))


def command(args: Sequence[str]) -> None:
    """`foreact train voc`."""
    train_voc(VERB.parse(args))
