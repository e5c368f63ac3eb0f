"""From names on the command line to the list of jobs: methods, datasets and categories are checked before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
from benchmarks import devices
from benchmarks.errors import UsageError
from benchmarks.store import Store
from benchmarks.units import Job, Protocol, Unit, config_dict, digest, metric_size
from datasets.base import Category, DatasetError, raise_problems
from datasets.checking import Examined
from datasets.settings import Setting
from models import registry
from models.base import Config
from models.errors import ModelError, near


@dataclass(frozen=True)
class Options:
    """Flags that every job of a run shares."""

    data_root: Path = Path("data")
    results: Path = Path("results")
    weights: str = "auto"
    weights_for: Mapping[str, Path] = field(default_factory=dict)
    device: str = "auto"
    repeatable: bool = False
    metric_size: str = "original"
    textures: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    keep_maps: bool = False
    watch: int = 0
    cache_dir: Path | None = None
    cache_size: int = 0
    time_limit: float = 0.0
    limit: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a device that has no such name."""
        devices.check(self.device)


@dataclass(frozen=True)
class Plan:
    """Jobs in the order in which they run, what is absent from the data root, and what could not be read."""

    jobs: tuple[Job, ...]
    absent: dict[str, tuple[str, ...]]
    unreadable: dict[str, str]

    def open(self, store: Store) -> list[Job]:
        """Jobs without a matching finished record."""
        return [job for job in self.jobs if not up_to_date(store, job)]


def up_to_date(store: Store, job: Job) -> bool:
    """Whether a finished record matches the job, weights files included."""
    record = store.load(job)
    return record is not None and _same_weights(record, job)


def _same_weights(record: Mapping[str, Any], job: Job) -> bool:
    """False when a weights file that the record names now has other content in the weights directory."""
    if job.weights in ("auto", "none"):
        return True
    from models.weights import sha256

    for used in record["weights"].values():
        if isinstance(used, dict) and not used.get("substitute"):  # those are in the job's key
            found = [sha256(path) for path in Path(job.weights).rglob(used["file"])]
            if found and used["sha256"] not in found:
                return False
    return True


def make_plan(
    methods: Sequence[str],
    wanted: Sequence[str],
    options: Options,
    *,
    categories: Sequence[str] = (),
    seeds: Iterable[int] = (0,),
) -> Plan:
    """Jobs for every combination, grouped by category so that units can share decoded pictures and features.

    Raises UsageError for unknown methods, presets, fields, datasets and categories, and when there is nothing to run.
    """
    combinations = []
    absent: dict[str, tuple[str, ...]] = {}
    unknown = set(categories)
    for dataset in wanted:
        try:
            found = datasets.find(dataset, options.data_root)
            missing = datasets.absent(dataset, options.data_root)
        except DatasetError as error:
            raise UsageError(str(error)) from error
        chosen = [c for c in found if not categories or c in categories]
        unknown -= {*found, *missing}
        absent[dataset] = tuple(c for c in missing if not categories or c in categories)
        combinations += [(method, dataset, category) for category in chosen for method in methods]
    if unknown:
        known = sorted({c for dataset in wanted for c in datasets.find(dataset, options.data_root)})
        first = sorted(unknown)[0]
        raise UsageError(
            f"unknown category {first!r}{near(first, known)}; under {options.data_root} there are: "
            f"{', '.join(known) or 'none'}"
        )
    plan = plan_units(combinations, options, seeds, absent)
    if not plan.jobs and not plan.unreadable:
        raise UsageError(
            f"nothing to run: no category of {', '.join(wanted)} is under {options.data_root}; "
            f"`run_benchmark.py list datasets --data-root {options.data_root}` shows what is found"
        )
    return plan


def plan_units(
    combinations: Iterable[tuple[str, str, str]],
    options: Options,
    seeds: Iterable[int] = (0,),
    absent: Mapping[str, tuple[str, ...]] | None = None,
) -> Plan:
    """Jobs for (method spec, dataset, category) triples; a category whose folder cannot be read is reported.

    A spec is `method@preset`, or `method@preset shots=4` with a setting; where a category's pictures do not suffice
    for that, it is reported in the same way.
    """
    protocol = Protocol(metric_size(options.metric_size))
    weights = options.weights
    if weights not in ("auto", "none"):
        if not Path(weights).is_dir():
            raise UsageError(f"--weights {weights}: not a directory; give auto, none or a directory of weight files")
        weights = str(Path(weights).resolve())
    weights_for = tuple((tag, *_substitute(tag, file)) for tag, file in sorted(options.weights_for.items()))
    textures = options.textures
    if textures not in ("", "embedded"):
        if not Path(textures).is_dir():
            raise UsageError(f"--textures {textures}: not a directory; give a folder of natural pictures, or embedded")
        textures = str(Path(textures).resolve())
    seeds = list(dict.fromkeys(seeds))
    configs: dict[str, tuple[str, str, Config, bool]] = {}
    combinations = list(dict.fromkeys(combinations))
    settings = {spec: parse_setting(spec) for spec, _, _ in combinations}
    loaded: dict[tuple[str, str], tuple[Category, Examined] | str] = {}
    hashes = _fingerprint_cache(options)
    jobs = []
    refused: dict[str, str] = {}

    def look(dataset: str, category: str) -> tuple[Category, Examined] | str:
        if (dataset, category) not in loaded:
            try:
                data = datasets.load(dataset, category, options.data_root, options.limit)
                examined = datasets.examine(data, hashes)
                raise_problems(examined.problems)
                loaded[dataset, category] = (data, examined)
            except DatasetError as error:
                loaded[dataset, category] = str(error)
        return loaded[dataset, category]

    for spec, dataset, category in combinations:
        if spec not in configs:
            configs[spec] = _config(spec.partition(" ")[0], options.settings)
        data = look(dataset, category)
        if isinstance(data, str):
            continue
        setting = settings[spec]
        fingerprint, remarks, joint = data[1].fingerprint, data[1].remarks, ()
        try:
            for seed in seeds if setting else ():
                setting.category(data[0], seed)
            if setting and setting.joint:
                fingerprint, remarks, joint = _together(
                    data[0], {name: look(dataset, name) for name in datasets.find(dataset, options.data_root)}
                )
        except DatasetError as error:
            refused[f"{dataset}/{category} {setting.text}"] = str(error)
            continue
        method, preset, config, modified = configs[spec]
        own = _for_method(options.settings, method)
        if textures and "textures" not in own and getattr(config, "textures", None) not in (None, textures):
            config = config.with_(textures=None)  # what the command line names comes before the preset's source
        jobs += [
            Job(
                unit=Unit(data[0].dataset, category, method, preset, seed, setting.text if setting else ""),
                config=config,
                config_hash=_config_hash(method, config), modified=modified, fingerprint=fingerprint, joint=joint,
                source=_source(dataset),
                protocol=protocol, data_root=Path(options.data_root).resolve(),
                results=Path(options.results).resolve(), weights=weights, weights_for=weights_for,
                device=options.device, repeatable=options.repeatable,
                textures=textures if getattr(config, "textures", "") is None else "",
                keep_maps=options.keep_maps, watch=options.watch, cache_dir=options.cache_dir,
                cache_size=options.cache_size, time_limit=options.time_limit,
                settings=own, limit=options.limit, remarks=remarks,
                training=setting.training if setting else "",
            )
            for seed in seeds
        ]
    unreadable = {f"{d}/{c}": text for (d, c), text in loaded.items() if isinstance(text, str)} | refused
    lacking = _without_weights(jobs)
    unreadable |= lacking
    jobs = [job for job in jobs if job.unit.spec not in lacking]
    # clean first: the others take features and, where training sees nothing of their setting, the detector of it
    order = list(dict.fromkeys(["", *(job.training for job in jobs)]))
    alike = list(dict.fromkeys(job.fit_key for job in jobs))
    jobs.sort(key=lambda job: (
        job.unit.dataset, bool(job.joint), "" if job.joint else job.unit.category, order.index(job.training),
        _sharing(job.config), job.unit.seed, alike.index(job.fit_key),
    ))
    for i, (job, after) in enumerate(pairwise(jobs)):
        if job.fitted_like(after):
            jobs[i] = replace(job, lend_fit=True)
    return Plan(tuple(jobs), dict(absent or {}), unreadable)


def _together(
    base: Category, found: Mapping[str, tuple[Category, Examined] | str]
) -> tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Fingerprint, remarks, and (name, fingerprint) of each of the categories that one model is fitted on.

    Raises DatasetError when one of them cannot be read or there is one only.
    """
    from datasets.settings import joined

    read = {name: data for name, data in found.items() if not isinstance(data, str)}
    for name, data in found.items():
        if isinstance(data, str):
            raise DatasetError(f"multi_class: trains on all categories, and {name} cannot be read: {data}")
    joined(base, [data[0] for data in read.values()])
    prints = tuple((name, data[1].fingerprint) for name, data in read.items())
    remarks = tuple(remark if name == base.name else f"{name}: {remark}"
                    for name, data in read.items() for remark in data[1].remarks)
    return digest(prints, 64), remarks, prints


def parse_setting(spec: str) -> Setting | None:
    """The setting behind a method's spec, or None; UsageError for one that does not exist."""
    from datasets.settings import CLEAN, parse

    text = spec.partition(" ")[2].strip()
    try:
        return parse(text) if text and text != CLEAN else None
    except DatasetError as error:
        raise UsageError(f"--setting: {error}") from error


def weights_needed(jobs: Iterable[Job]) -> list[tuple[str, str]]:
    """(tag, where its weights are or what to do) for the pretrained networks that the jobs' settings name."""
    rows = {}
    for job in jobs:
        for tag in pretrained(job.unit.method, job.config):
            if job.weights == "none":
                rows[tag] = "not loaded: --weights none"
            elif job.weights == "auto":
                rows[tag] = "the libraries' caches, else a download"
            else:
                rows[tag] = _lacking(job, tag) or f"in {job.weights}"
    return sorted(rows.items())


def pretrained(method: str, config: Config) -> set[str]:
    """Tags of pretrained weights that a config names, those of an ensemble's members included."""
    tags = {getattr(config, field, "") for field in ("backbone", "encoder")}
    tags = {tag for tag in tags if isinstance(tag, str) and re.fullmatch(r"\w+\.\w+", tag)}
    members = getattr(config, "members", ())
    if members:
        from models.ensembles.members import parse_members

        for spec, _, member in parse_members(members, method):
            tags |= pretrained(spec.partition("@")[0], member)
    return tags


def _lacking(job: Job, tag: str) -> str:
    """Why a unit would not find a network's weights in its directory, or ''."""
    if tag in {given for given, _, _ in job.weights_for}:
        return ""
    from models.weights import found_in

    return "" if found_in(job.weights, tag) else (
        f"weights {tag!r} not found in {job.weights}; put {tag}.pth or {tag}.safetensors there, or give "
        f"--weights-for {tag}=FILE"
    )


def _without_weights(jobs: Iterable[Job]) -> dict[str, str]:
    """{unit's method: why} for methods whose weights are not in the directory given."""
    out = {}
    for job in jobs:
        if job.weights not in ("auto", "none") and job.unit.spec not in out:
            why = [text for tag in sorted(pretrained(job.unit.method, job.config)) if (text := _lacking(job, tag))]
            if why:
                out[job.unit.spec] = "\n  ".join(why)
    return out


def _substitute(tag: str, file: Path) -> tuple[str, str]:
    """Absolute path and sha256 of a file given instead of a tag's weights; UsageError when it holds none."""
    from models.weights import read, sha256

    if not file.is_file():
        raise UsageError(f"--weights-for {tag}={file}: no such file")
    try:
        read(file)
    except ModelError as error:
        raise UsageError(f"--weights-for {tag}={file}: {error}") from error
    return str(file.resolve()), sha256(file)


def _source(dataset: str) -> str:
    return str(Path(dataset).resolve()) if dataset.endswith((".yaml", ".yml")) else dataset


def _sharing(config: Config) -> tuple[str, int]:
    """Methods on the same backbone and size stand next to each other, the one with most layers first.

    Features are then taken from one pass, which the later ones find in the cache. The seed comes after, because frozen
    features do not hang on it.
    """
    layers = getattr(config, "layers", ())
    layers = layers if isinstance(layers, tuple) else ()  # a number of layers is another thing
    size = getattr(config, "resize", None) or getattr(config, "size", None)
    same = [getattr(config, "backbone", ""), size, getattr(config, "crop", None), config.precision]
    return str(same), -len(layers)


def _config(spec: str, settings: Mapping[str, str]) -> tuple[str, str, Config, bool]:
    try:
        method, preset = registry.parse(spec)
        plain = registry.config(spec)
        config = registry.config(spec, _for_method(settings, method))
    except ModelError as error:
        raise UsageError(str(error)) from error
    return method, preset, config, config != plain


def _config_hash(method: str, config: Config) -> str:
    """Hash of the settings; an ensemble's covers those of its members, whose presets may change on their own."""
    members = getattr(config, "members", ())
    if not members:
        return digest([method, config_dict(config)])
    from models.ensembles.members import parse_members

    try:
        parts = [[spec, config_dict(member)] for spec, _, member in parse_members(members, method)]
    except ModelError as error:
        raise UsageError(str(error)) from error
    return digest([method, config_dict(config), parts])


def check_settings(settings: Mapping[str, str], methods: Sequence[str]) -> None:
    """Raise UsageError for a setting of a method that is not among those (specs) to run: it would do nothing."""
    names = sorted({spec.partition(" ")[0].partition("@")[0] for spec in methods})
    for key in settings:
        method = key.rpartition(".")[0]
        if method and method not in names:
            raise UsageError(f"--set {key}: {method} is not among the methods{near(method, names)}")


def _for_method(settings: Mapping[str, str], method: str) -> dict[str, str]:
    """`field=value` for every method; `method.field=value` for one."""
    chosen = {k: v for k, v in settings.items() if "." not in k}
    prefix = f"{method}."
    return chosen | {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}


def _fingerprint_cache(options: Options) -> Path | None:
    """File that remembers content hashes by path, size and time of change; none when results are read-only."""
    folder = Path(options.results) / "runs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder / ".fingerprints.json" if os.access(folder, os.W_OK) else None
