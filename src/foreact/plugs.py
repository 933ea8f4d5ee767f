"""Plugs: how a model family, task, simulator, ... is added without editing this package.

A plug is one value that a module exports. It is found by its name among the built-in ones, by its
name among the entry points of the installed packages, or by the import path of its module,
`my_package.my_module` or a file `my_module.py` in the present folder. A plug refers to heavy
modules by import paths "module:attribute", so that finding one is fast.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from foreact.errors import UserError, did_you_mean

T = TypeVar("T")


def load_object(path: str, what: str) -> Any:
    """The object at the import path "module:attribute".

    Args:
        path: where.
        what: what is expected there, for the error, such as "The environment".

    Raises:
        UserError: nothing does.
    """
    module, colon, name = path.partition(":")
    if not colon or not name:
        raise UserError(f"{what} '{path}' should be an import path 'module:name'.")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{what} '{path}' cannot be imported ({error}); check the spelling and PYTHONPATH."
        ) from error


def import_module(name: str) -> Any:
    """Import a module, which may lie in the present folder, even from an installed command."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # at the end, so that no local file shadows an installed one
    return importlib.import_module(name)


@dataclass(frozen=True)
class Plugs(Generic[T]):
    """All plugs of one kind.

    Attributes:
        kind: what they are called in sentences, such as "task".
        cls: type of the value.
        attribute: name under which a module exports it.
        group: of the entry points.
        built_in: name -> import path "module:attribute" of ours.
        added: name -> value of those that this process was told of.
        paths: name -> import path by which it was told of them.
    """

    kind: str
    cls: type[T]
    attribute: str
    group: str
    built_in: dict[str, str]
    added: dict[str, T] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Names of built-in, installed and added plugs; no module is imported."""
        installed = [entry.name for entry in entry_points(group=self.group)]
        return list(dict.fromkeys([*self.built_in, *installed, *self.added]))

    def find(self, name: str) -> T:
        """The plug of that name or import path.

        Raises:
            UserError: there is none, its module cannot be imported, or holds something else.
        """
        if name in self.added:
            return self.added[name]
        if name in self.built_in:
            return load_object(self.built_in[name], f"The {self.kind}")
        for entry in entry_points(group=self.group):
            if entry.name == name:
                value = load_object(entry.value, f"The {self.kind} '{name}',")
                return self._checked(value, entry.value)
        module, _, attribute = name.partition(":")
        if "." not in module and not _is_module(module):
            raise UserError(
                f"There is no {self.kind} called '{name}'{did_you_mean(name, self.names())}"
            )
        try:
            imported = import_module(module)
        except (ImportError, TypeError, ValueError) as error:  # the last two: no name of a module
            raise UserError(
                f"{self.kind.capitalize()} '{name}' cannot be imported ({error}); check the "
                "spelling and PYTHONPATH."
            ) from None
        attribute = attribute or self.attribute
        if not hasattr(imported, attribute):
            raise UserError(
                f"Module '{module}' exports no {attribute}; "
                f"define `{self.attribute} = {self.cls.__name__}(...)` in it."
            )
        return self._checked(getattr(imported, attribute), name)

    def installed(self) -> list[str]:
        """Names that installed packages add to ours."""
        names = {entry.name for entry in entry_points(group=self.group)}
        return sorted(names - set(self.built_in))

    def _checked(self, value: Any, where: str) -> T:
        if not isinstance(value, self.cls):
            raise UserError(
                f"'{where}' should hold a {self.cls.__module__}.{self.cls.__name__}, found a "
                f"{type(value).__name__}."
            )
        return value


def _is_module(name: str) -> bool:
    try:
        in_present_folder = os.path.isfile(os.path.join(os.getcwd(), f"{name}.py"))
        return in_present_folder or (
            name.isidentifier() and importlib.util.find_spec(name) is not None
        )
    except (ImportError, ValueError):
        return False


CAPABILITIES = {
    "train": "be trained by a verb of the command line",
    "policy": "act",
    "generate": "imagine",
    "video": "be measured as a video model",
    "write": "be written in another layout",
}
"""Entry that a family may lack -> what its weights then cannot do, for the error."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family, as the shared packages know it.

    Attributes:
        name: in checkpoints, and on the command line, where "_" is written "-".
        title: what training it means, for `foreact --help`.
        config: import path of the dataclass that holds its sizes.
        module: of the `torch.nn.Module` that such a config builds.
        train: of `(args: Sequence[str]) -> object`, the verb `foreact train NAME`.
        policy: of `(path: Path, options, *, execute: int | None, device: torch.device) -> Policy`,
            which opens a checkpoint folder to act.
        policy_options: of the frozen dataclass of what else `policy` takes, all with defaults; they
            become options of `foreact eval closed-loop`.
        generate: of the typed function behind `foreact generate --weights WEIGHTS`.
        video: of the typed function behind `foreact eval video --weights WEIGHTS`.
        layouts: of a tuple of `foreact.released.layouts.Layout`: checkpoints of other projects that
            it reads.
        write: of `(path: Path, out: Path) -> str`, which writes a checkpoint folder as its authors'
            code reads it, and returns what to tell.
    """

    name: str
    title: str
    config: str
    module: str
    train: str | None = None
    policy: str | None = None
    policy_options: str | None = None
    generate: str | None = None
    video: str | None = None
    layouts: str | None = None
    write: str | None = None

    @property
    def verb(self) -> str:
        """Its name on the command line."""
        return self.name.replace("_", "-")

    def get(self, entry: str) -> Any:
        """What `config`, `module`, `train` and so on name, imported.

        Raises:
            UserError: the family has no such thing.
        """
        path = getattr(self, entry)
        if path is None:
            raise UserError(
                f"Weights of the family '{self.name}' cannot {CAPABILITIES[entry]}; name others."
            )
        return load_object(path, f"The {entry} of the family '{self.name}',")


FAMILIES = Plugs(
    kind="family",
    cls=Family,
    attribute="FAMILY",
    group="foreact.families",
    built_in={
        "kl_vae": "foreact.families.codes:KL_VAE",
        "vq": "foreact.families.codes:VQ",
        "vqkd": "foreact.families.codes:VQKD",
        "musik": "foreact.families.codes:MUSIK",
        "uva": "foreact.families.uva:FAMILY",
        "vavim": "foreact.families.driving:VAVIM",
        "vavam": "foreact.families.driving:VAVAM",
        "voc": "foreact.families.voc:FAMILY",
        "bc": "foreact.families.voc.cloning:FAMILY",
    },
)


def add_family(path: str) -> Family:
    """Find a family by import path and register it under the name that checkpoints use.

    Raises:
        UserError: there is none, or another family has its name.
    """
    family = FAMILIES.find(path)
    if family.name in FAMILIES.names() and FAMILIES.find(family.name) != family:
        raise UserError(
            f"'{path}' calls its family '{family.name}', as another one is called; "
            "give it another name."
        )
    FAMILIES.added[family.name] = family
    FAMILIES.paths[family.name] = path
    return family


def known_family(name: Any, who: str) -> Family:
    """The family that a checkpoint names.

    Args:
        name: as found there.
        who: the checkpoint, for the error.

    Raises:
        UserError: none that is known; nothing is imported that a file names.
    """
    if name not in FAMILIES.names():
        raise UserError(
            f"{who} is of the unknown family '{name}'{did_you_mean(str(name), FAMILIES.names())} "
            "A family that is not installed is named by its module: --family my_package.my_model."
        )
    return FAMILIES.find(name)


def families_with(entry: str) -> list[str]:
    """Names of the families that have such a thing; an installed one that is broken is left out."""
    names = []
    for name in FAMILIES.names():
        try:
            family = FAMILIES.find(name)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        if getattr(family, entry) is not None:
            names.append(name)
    return names


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """A simulator, as the shared packages know it.

    Attributes:
        name: on the command line; "NAME/..." is handed to the simulator of that name.
        make: import path of a function without arguments that returns a `foreact.worlds.Env`.
        expert: of one that returns a `foreact.worlds.Expert`, or None where nobody can show how it
            is done.
        collect: of the typed function behind `foreact data collect --env NAME`; its first parameter
            is `env`. By default the one that lets the expert act.
        success_at: sum of rewards from which an expert's episode has solved the problem; others are
            left out of a collection. None: all are kept.
    """

    name: str
    make: str | None = None
    expert: str | None = None
    collect: str = "foreact.commands.collect:by_expert"
    success_at: float | None = None


SIMULATORS = Plugs(
    kind="environment",
    cls=Simulator,
    attribute="ENV",
    group="foreact.envs",
    built_in={
        "pusht": "foreact.envs.simulators:PUSHT",
        "pusht-m": "foreact.envs.simulators:PUSHT_M",
        "dmc": "foreact.envs.simulators:DMC",
        "lift": "foreact.envs.simulators:LIFT",
        "can": "foreact.envs.simulators:CAN",
        "square": "foreact.envs.simulators:SQUARE",
    },
)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format of episodes that is opened in place.

    Attributes:
        name: short.
        recognise: import path of `(path: Path) -> bool`, which looks at names, or at no more of a
            file than tells it from others of its kind.
        open: of `(path: Path, spec: StreamSpec | None, *, memory_limit: int) -> EpisodeStore`; see
            `foreact.data.stores.episodes`.
        options: what else `open` takes by name, for data that can be read in several ways; all with
            defaults. A task may choose (`Task.data_options`).
    """

    name: str
    recognise: str
    open: str
    options: tuple[str, ...] = ()


FORMATS = Plugs(
    kind="format",
    cls=Format,
    attribute="FORMAT",
    group="foreact.formats",
    built_in={
        "libero": "foreact.data.formats:LIBERO",
        "robomimic": "foreact.data.formats:ROBOMIMIC",
        "libero-cache": "foreact.data.formats:LIBERO_CACHE",
        "d4rl": "foreact.data.formats:D4RL",
        "dreamer": "foreact.data.formats:DREAMER",
        "lerobot": "foreact.data.formats:LEROBOT",
        "packed": "foreact.data.formats:PACKED",
        "video-folder": "foreact.data.formats:VIDEO_FOLDER",
    },
)


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A text encoder, as the shared packages know it.

    Attributes:
        name: short; "NAME:FOLDER" on the command line where its files lie in a folder.
        open: import path of `(folder: Path | None, *, device: torch.device) ->
            foreact.types.TextEncoder`.
    """

    name: str
    open: str


TEXT_ENCODERS = Plugs(
    kind="text encoder",
    cls=TextModel,
    attribute="ENCODER",
    group="foreact.text_encoders",
    built_in={
        "minilm": "foreact.text:MINILM",
        "clip": "foreact.text:CLIP",
    },
)
