"""Settings of the jobs: typed, from YAML and the command line, unknown keys refused with the nearest known one."""

import argparse
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from actors.config import AdversaryConfig
from guardrail.curation import CurationConfig
from guardrail.files import write_text
from guardrail.synthesis import SynthesisConfig
from guardrail.training import TrainingConfig
from guardrail.transforms import transform_names


class SplitConfig(BaseModel):
    """How seeds are split, by seed, before anything grows from them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: float = Field(
        0.2, gt=0, lt=0.5, description="share that sets temperature and threshold; never trained on"
    )
    held_out_goals: float = Field(
        0.15, ge=0, lt=0.5, description="share attacked but never trained on, nor what grows of it"
    )


class PromotionConfig(BaseModel):
    """When a retrained guard replaces the one in use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_benign_fpr_rise: float = Field(
        0.02, ge=0, description="over the round-0 guard, on the benign seeds never trained on"
    )
    max_auprc_drop: float = Field(0.03, ge=0, description="below the round-0 guard, on the seeds never trained on")


class ClusterConfig(BaseModel):
    """Where to run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(None, description="of a running Ray cluster; None: RAY_ADDRESS, or a local one")


class JobSettings(BaseSettings):
    """How jobs take settings; each setting is one of the jobs that read it."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)  # a truth value is written out: --KEY true

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the YAML file and the command line only: a variable called SEED in the environment is not ours."""
        return (init_settings,)


class ClusterSettings(JobSettings):
    """Settings of a job that runs on a cluster."""

    cluster: ClusterConfig = ClusterConfig()


class SeedSettings(JobSettings):
    """Settings of a job that draws."""

    seed: int = Field(0, ge=0, lt=2**31, description="decides every draw")


class EvaluationSettings(SeedSettings):
    """Settings of a job that measures a guard, also on requests written anew."""

    transforms: list[str] = Field(
        [], description="also measure under these transforms of the requests (all: every one)"
    )
    transform_sample: int = Field(200, ge=1, description="requests of each label and set that transforms write anew")

    @field_validator("transforms")
    @classmethod
    def _transforms_exist(cls, names: list[str]) -> list[str]:
        return transform_names(names)


class LoopSettings(ClusterSettings, SeedSettings):
    """Settings of the adversarial loop."""

    run_dir: Path = Field(Path("runs/default"), description="run directory; the same one resumes")
    seeds: Path | None = Field(None, description="CSV, JSONL or parquet of seeds; None: the embedded ones")
    texts: int = Field(
        0,
        ge=0,
        description="embedded texts, short ones first, that train guards beside the embedded seeds and what grows from "
        "them; beside seeds of your own none do, for these may follow another policy",
    )
    data_dir: Path | None = Field(None, description="local copies of public data sets")
    evaluation: list[str] = Field([], description="evaluation sets by name, or files")
    rounds: int = Field(3, ge=0, description="adversarial rounds after round 0")
    transforms: int = Field(
        100, ge=0, description="seeds per round that deterministic transforms write, the attempts of attackers aside"
    )
    split: SplitConfig = SplitConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    curation: CurationConfig = CurationConfig()
    training: TrainingConfig = TrainingConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    promotion: PromotionConfig = PromotionConfig()


Settings = TypeVar("Settings", bound=JobSettings)


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the settings that can be given, as dotted keys."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from dotted_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def load(settings: type[Settings], arguments: Sequence[str], description: str) -> Settings:
    """Return the settings from `--config FILE` and `--dotted.key value`, the latter winning.

    `--print-config` prints the resolved settings and exits. A mistake ends the process with status 2 and a message that
    names the key, and the nearest known one where it is unknown.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="settings (--KEY VALUE, or in the YAML file):\n" + _listing(settings),
    )
    parser.add_argument("--config", type=Path, help="YAML file of settings")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    known, rest = parser.parse_known_args(_spread([_underscored(argument) for argument in arguments], settings))
    keys = list(dotted_keys(settings))
    for argument in rest:
        if argument.startswith("--") and argument[2:].split("=", 1)[0] not in keys:
            _fail(_unknown(argument[2:].split("=", 1)[0], keys))
    values = _read_yaml(known.config) if known.config else {}
    try:
        source: CliSettingsSource[Settings] = CliSettingsSource(settings, cli_parse_args=rest, cli_exit_on_error=False)
        resolved = settings(_cli_settings_source=source, **values)
    except ValidationError as error:
        _fail("\n".join(_explain(problem, keys) for problem in error.errors()))
    except Exception as error:  # noqa: BLE001 - pydantic-settings has several kinds for a malformed command line
        _fail(str(error))
    if known.print_config:
        print(to_yaml(resolved), end="")
        raise SystemExit(0)
    return resolved


def to_yaml(settings: BaseModel) -> str:
    """Return settings as the YAML that `load` reads."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def deciding(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return, by dotted key, the settings that decide what a run finds; where it lies and runs does not.

    Args:
        values: of settings, nested, as `to_yaml` has them.
        prefix: of all keys.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= deciding(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("run_dir", "cluster.address"):
            found[f"{prefix}{key}"] = value
    return found


def save_beside(settings: BaseModel, output: Path) -> None:
    """Save resolved settings beside what a job wrote, as OUTPUT.config.yaml."""
    write_text(output.with_name(f"{output.name}.config.yaml"), to_yaml(settings))


def _underscored(argument: str) -> str:
    """Return `--run-dir` as `--run_dir`: both are accepted; values stay as they are."""
    if not argument.startswith("--") or argument in ("--print-config", "--help"):
        return argument
    key, equals, value = argument.partition("=")
    return "--" + key[2:].replace("-", "_") + equals + value


def _spread(arguments: Sequence[str], settings: type[BaseModel]) -> list[str]:
    """Return `--data a b` as `--data a --data b`, for the settings that are lists."""
    lists = {f"--{name}" for name, field in settings.model_fields.items() if get_origin(field.annotation) is list}
    found: list[str] = []
    key: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            key = argument if argument in lists else None
            fresh = True
        elif key and not fresh:
            found.append(key)
        found.append(argument)
        fresh = argument == key
    return found


def _listing(settings: type[BaseModel]) -> str:
    def lines(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from lines(kind, f"{prefix}{name}.")
            else:
                yield f"  {prefix}{name} = {field.get_default(call_default_factory=True)}  {field.description or ''}"

    return "\n".join(lines(settings, ""))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        _fail(f"cannot read {path}: {error.strerror}")
    except yaml.YAMLError as error:
        _fail(f"{path} is not YAML: {error}")
    if not isinstance(values, dict | None):
        _fail(f"{path} must hold a mapping of settings")
    return values or {}


def _explain(problem: Any, keys: Sequence[str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown(key, keys)
    if problem["type"] == "missing":
        return f"--{key} is missing; --help lists all settings"
    return f"{key}: {problem['msg']} (got {problem['input']!r})"


def _unknown(key: str, keys: Sequence[str]) -> str:
    last = {known.rsplit(".", 1)[-1]: known for known in keys}
    name = key.rsplit(".", 1)[-1]
    near = [last[name]] if name in last else difflib.get_close_matches(key, keys, n=1)
    near = near or [last[other] for other in difflib.get_close_matches(name, list(last), n=1)]
    return f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else "; --help lists all settings")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
