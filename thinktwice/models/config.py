"""Architecture and sizes of a model: the options that all backbones share, and one class per backbone for its own.

Importing this loads no torch: recipes and the command line name backbones without building one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from thinktwice.models.own import imported, trusted


class BackboneConfig(BaseModel):
    """Options of every backbone. A backbone with options of its own declares them in a subclass, its ``config_class``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    dim: int = Field(default=16, ge=1, le=512)
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(default=(128, 64), max_length=32)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    init_sd: float = Field(default=0.05, gt=0.0, le=1e3)  # of the embedding table


class LRConfig(BackboneConfig):
    """First-order weights alone; ``hidden`` and ``dropout`` have no effect."""

    name: Literal["lr"] = "lr"
    dim: int = Field(default=1, ge=1, le=512)


class FMConfig(BackboneConfig):
    """Pairwise products; ``hidden`` and ``dropout`` have no effect."""

    name: Literal["fm"] = "fm"


class DeepFMConfig(BackboneConfig):
    """Pairwise products and an MLP."""

    name: Literal["deepfm"] = "deepfm"


class DCNv2Config(BackboneConfig):
    """Full-matrix cross layers and an MLP."""

    name: Literal["dcnv2"] = "dcnv2"
    cross_layers: int = Field(default=2, ge=1, le=8)


class AutoIntConfig(BackboneConfig):
    """Self-attention over the fields and an MLP."""

    name: Literal["autoint"] = "autoint"
    attention_layers: int = Field(default=2, ge=1, le=8)
    attention_heads: int = Field(default=2, ge=1, le=16)
    attention_width: int = Field(default=16, ge=1, le=256)  # numbers per field and head


class MaskNetConfig(BackboneConfig):
    """Blocks with instance-guided masks in parallel, and an MLP over them."""

    name: Literal["masknet"] = "masknet"
    mask_blocks: int = Field(default=3, ge=1, le=16)
    block_width: int = Field(default=64, ge=1, le=4096)
    reduction: float = Field(default=1.0, gt=0, le=8)  # width of a mask's inner layer over that of all embeddings


class FinalMLPConfig(BackboneConfig):
    """Two MLP streams with gated inputs and a bilinear fusion."""

    name: Literal["finalmlp"] = "finalmlp"
    gate_width: int = Field(default=64, ge=1, le=4096)
    fusion_heads: int = Field(default=4, ge=1, le=256)  # one head if they do not divide the last layer


class DINConfig(BackboneConfig):
    """Target attention over sequences, and an MLP."""

    name: Literal["din"] = "din"
    attention_hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(32,), max_length=8)


class HSTUConfig(BackboneConfig):
    """A transformer over the fields, with the layers of HSTU."""

    name: Literal["hstu"] = "hstu"
    attention_layers: int = Field(default=2, ge=1, le=8)
    attention_heads: int = Field(default=2, ge=1, le=16)
    attention_width: int = Field(default=16, ge=1, le=256)  # numbers per field and head


GROUP = "thinktwice.backbones"  # entry points by which an installed package offers its own

#: Classes of options by the name of their backbone; registering a backbone adds its own.
CONFIGS: dict[str, type[BackboneConfig]] = {
    "lr": LRConfig,
    "fm": FMConfig,
    "deepfm": DeepFMConfig,
    "dcnv2": DCNv2Config,
    "autoint": AutoIntConfig,
    "masknet": MaskNetConfig,
    "finalmlp": FinalMLPConfig,
    "din": DINConfig,
    "hstu": HSTUConfig,
}

#: Classes of your own by their short name, as far as this process has imported them.
OWN: dict[str, Any] = {}


def config_class(name: str) -> type[BackboneConfig]:
    """The class of options of a backbone, which may come from an installed package.

    Raises:
        ValueError: there is no such backbone.
    """
    if name not in CONFIGS:
        for point in entry_points(group=GROUP, name=name):
            CONFIGS[name] = point.load().config_class
    if name not in CONFIGS:
        for reference in trusted():
            register_own(reference)
    if name not in CONFIGS:
        raise ValueError(
            f"backbone {name!r} is unknown, known are {', '.join(sorted(CONFIGS))}; name the class of your own as "
            "package.module:Class, in a recipe or in the environment variable THINKTWICE_BACKBONES"
        )
    return CONFIGS[name]


def register_own(reference: str) -> str:
    """Import a backbone by ``package.module:Class`` and register its options; returns its short name.

    Raises:
        ValueError: it cannot be imported, is not a backbone, has no short name, or its name is taken by another class.
    """
    kind = imported(reference)
    short = kind.config_class.model_fields["name"].default
    if not isinstance(short, str) or ":" in short:
        raise ValueError(
            f"backbone {reference!r} has no short name for bundles: declare `name: Literal['...'] = '...'` in its config_class"
        )
    if OWN.get(short) is not kind and short in CONFIGS:
        raise ValueError(f"the backbone {short!r} exists already: give the config_class of {reference!r} another name")
    OWN[short], CONFIGS[short] = kind, kind.config_class
    return short


def backbone_config(name: str = "deepfm", **options: Any) -> BackboneConfig:
    """Options of a backbone by its name, or by ``package.module:Class`` of a class of your own, which is then registered.

    Raises:
        ValueError: there is no such backbone, or it has no such option or value.
    """
    if ":" in name:
        name = register_own(name)
    return config_class(name).model_validate({"name": name} | options)


def _resolved(value: object) -> BackboneConfig:
    if isinstance(value, BackboneConfig):
        expected = config_class(value.name)
        if not isinstance(value, expected):
            raise ValueError(f"options of the backbone {value.name!r} are a {expected.__name__}, not {value!r}")
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("name", ""), str):
        raise ValueError("options of a backbone are an object with its name")
    return backbone_config(**value)


#: The options of any backbone, chosen by ``name``.
AnyBackboneConfig = Annotated[SerializeAsAny[BackboneConfig], BeforeValidator(_resolved)]
