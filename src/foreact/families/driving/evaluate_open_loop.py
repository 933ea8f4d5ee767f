"""`foreact eval open-loop`: driving models on recorded drives, by next token and by minADE."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from foreact.data.formats.video import save_image
from foreact.data.stores.fingerprint import fingerprint
from foreact.data.windows.loader import ordered_batches
from foreact.evals.report import Media
from foreact.families.driving import measuring
from foreact.families.driving.data.drives import FRONT
from foreact.families.driving.data.windows import DrivingWindows
from foreact.families.driving.evals import open_loop as driving
from foreact.families.driving.evals.plan_pictures import GroundCamera, plan_picture
from foreact.families.driving.sources import open_drives
from foreact.files import write_json
from foreact.machine import AnyPrecision, Precision, autocast, choose_precision
from foreact.progress import Progress
from foreact.runs.command_line import options_of
from foreact.runs.results import open_results
from foreact.runs.run import pick_device, say
from foreact.runs.unseen import episodes_to_measure
from foreact.seeds import require_seeds
from foreact.types import Batch


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Which model to score, on which recorded drives, and how."""

    weights: str
    """a checkpoint of VaViM or VaVAM."""
    data: str
    """a source as in `foreact train vavim --data.sources`.

    A store with tokens, a folder of token folders with its frame rate (flat_tokens@10), or
    trajectories with their tokens (val.pkl:tokens@2).
    """
    stride: int | None = None
    """frames of the data from one of the model's to the next; default: by the model's rate."""
    samples: int = 10
    """plans per window, the k of minADE_k."""
    steps: int | None = None
    """Euler steps per plan; default: the model's."""
    command_horizon: Literal["plan", "reference"] = "plan"
    """commands look to the end of the plan, or as the released VaVAM was trained."""
    max_windows: int | None = None
    """measure so many, spread evenly over the data; default: every one."""
    batch_size: int = 8
    """windows per call."""
    seed: int = 0
    """of the plans' draws."""
    examples: int = 8
    """plans to draw."""
    calibration: Path | None = None
    """JSON of the camera, to draw plans on frames.

    Its keys: intrinsic (3 x 3), sensor_to_ego_rot (w, x, y, z), sensor_to_ego_tran (x, y, z), size
    (height, width).
    """
    store_trajectories: bool = False
    """also write every plan to plans.json."""
    precision: AnyPrecision = "fp32"
    """to compute in; with auto, what is fast here, the numbers depend on the machine."""
    out: Path = Path("runs/open-loop")
    """folder of the results."""
    device: str | None = None
    """where to compute; default CUDA if there is one."""


def open_loop(asked: Annotated[OpenLoop, arg(name="")]) -> None:  # --weights, not --asked.weights
    """Score a driving model on recorded drives: next-token loss and, for VaVAM, minADE of plans."""
    opened = Opened(asked)
    facts = opened.describe()
    say("Open loop", **facts, device=opened.device, out=asked.out)
    opened.report(facts, opened.tokens(), opened.plans())


class Opened:
    """The model, and the drives to score it on."""

    def __init__(self, asked: OpenLoop) -> None:
        measuring.require_batch_size(asked.batch_size)
        require_seeds(asked.seed, option="--seed")
        self.asked = asked
        self.device = pick_device(asked.device)
        self.precision: Precision = choose_precision(asked.precision, self.device)
        self.models = measuring.open_models(asked.weights, self.device)
        self.drives = open_drives(asked.data)
        hashes = {
            "weights": self.models.checkpoint.hash,
            "data": fingerprint(self.drives).digest,
        }
        self.results = open_results(asked.out, "eval open-loop", options_of(asked), **hashes)
        self.episodes, self.about = episodes_to_measure(self.models.checkpoint.path, self.drives)
        self.ground = None if asked.calibration is None else GroundCamera.read(asked.calibration)
        self.stride = measuring.model_stride(
            self.drives.label, self.drives.spec.fps, self.models.rate_hz, asked.stride
        )

    def describe(self) -> dict[str, Any]:
        return {
            "command": self.results.command,
            "weights": f"{self.asked.weights} {self.models.checkpoint.hash}",
            "data": self.drives.label,
            "drives": self.about,
            "window": f"{self.models.vavim.config.frames} frames, {self.stride} apart",
            "precision": self.precision,
        }

    def tokens(self) -> driving.NextToken:
        """The loss of the next token, also printed."""
        vavim = self.models.vavim
        batches = self._batches("next token", frames=vavim.config.frames, horizon=None)
        with autocast(self.device, self.precision):
            result = driving.next_token(
                vavim.token_losses, batches, vavim.config.camera, device=self.device
            )
        print(
            f"next token  {result.loss}   perplexity {result.perplexity:.1f}   "
            f"({result.windows} windows)"
        )
        return result

    def plans(self) -> driving.OpenLoopResult | None:
        """The distance of the plans, also printed; None for a model that makes none."""
        asked, vavam = self.asked, self.models.vavam
        if vavam is None:
            return None
        config = vavam.config
        batches = self._batches(
            "plans",
            frames=config.context or config.vavim.frames,
            horizon=config.expert.horizon,
            command_horizon=asked.command_horizon,
        )
        with autocast(self.device, self.precision):
            result = driving.open_loop(
                vavam,
                batches,
                config.vavim.camera,
                samples=asked.samples,
                seed=asked.seed,
                device=self.device,
                steps=config.steps if asked.steps is None else asked.steps,
                examples=asked.examples,
            )
        print(f"minADE_{asked.samples}  {result.min_ade}")
        for command, value in result.per_command.items():
            print(f"  {command:<16}{value}   ({result.windows[command]} windows)")
        for baseline, value in result.baselines.items():
            print(f"  {baseline:<16}{value}")
        return result

    def report(
        self, facts: dict[str, Any], tokens: driving.NextToken, plans: driving.OpenLoopResult | None
    ) -> None:
        asked, pictures = self.asked, []
        result: dict[str, Any] = {"facts": facts, "next_token": tokens.to_json()}
        if plans is not None:
            score = f"minADE_{asked.samples}"
            facts |= {"command horizon": asked.command_horizon, score: str(plans.min_ade)}
            facts |= {
                f"{score}, {command}": str(value) for command, value in plans.per_command.items()
            }
            facts |= {f"ADE, {baseline}": str(value) for baseline, value in plans.baselines.items()}
            result["plans"] = plans.to_json()
            pictures = [self._draw(plans.plans[i]) for i in plans.examples]
            if asked.store_trajectories:
                write_json(asked.out / "plans.json", plans.plans_json())
        facts |= {"nats per token": str(tokens.loss), "perplexity": f"{tokens.perplexity:.2f}"}
        measuring.conclude(
            asked.out, "Open loop on recorded drives", result, facts=facts, pictures=pictures
        )
        self.results.finish()

    def _batches(self, name: str, **options: Any) -> Iterable[Batch]:
        """Batches as the model reads them, with a bar; `options`: see `DrivingWindows`."""
        model, size = self.models.vavim.config, self.asked.batch_size
        windows = DrivingWindows(
            self.drives,
            stride=self.stride,
            vocab=model.vocab,
            camera=model.camera,
            episodes=self.episodes,
            **options,
        )
        chosen = measuring.choose(windows, self.asked.max_windows)
        batches = ordered_batches(windows, batch_size=size, chosen=chosen)
        return Progress(batches, total=-(-len(chosen) // size), desc=name, unit="batch")

    def _draw(self, plan: driving.Plan) -> Media:
        """A plan from above and, where the drives have pictures, on its first frame."""
        drives, frame = self.drives, None
        if drives.has(FRONT):
            frame = drives.read(plan.episode, plan.step, plan.step + 1, [FRONT])[FRONT][0]
        path = self.asked.out / f"plan-episode-{plan.episode}-step-{plan.step}.png"
        save_image(path, plan_picture(plan, frame, self.ground))
        return Media(path, f"{drives.names[plan.episode]}, step {plan.step}")
