"""Preparation of a study: its adapters are trained, and fitted to the ages that it measures.

Leases in the store divide the work between the processes that run the study.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from peft import PeftModel

from analog_grasp.adapters.registry import kind_of
from analog_grasp.study.config import is_saved
from analog_grasp.study.engines import helped
from analog_grasp.study.evaluator import Evaluator, check_metrics, share_frozen
from analog_grasp.study.fields import GRASP
from analog_grasp.study.progress import Progress, logged, silent
from analog_grasp.study.provenance import (
    LOG_FILE,
    STORE_FILE,
    adapter_hash,
    data_hash,
    training_seed,
)
from analog_grasp.study.records import AdapterRecord, ModelKey, training_folder
from analog_grasp.study.store import POLL_SECONDS, Leases, Store
from analog_grasp.study.study import Study
from analog_grasp.study.trained_adapters import (
    learned_parameters,
    load_with_hash,
    new_adapter,
    save_adapter,
    train_adapter,
)
from analog_grasp.training.schedule import INDEX_FILE, STEPS, AgeSchedule, fit_schedule
from analog_grasp.utils.io import place_name


@dataclass
class Preparation:
    """The trained adapters of a study, and how this process shares in training them.

    Attributes:
        study, store, leases, progress: As in `analog_grasp.study.runner.run`.
        models, records: The trained adapters.
    """

    study: Study
    store: Store
    leases: Leases
    progress: Progress
    models: dict[ModelKey, PeftModel] = field(default_factory=dict)
    records: dict[ModelKey, AdapterRecord] = field(default_factory=dict)

    def evaluator(self, trainings: int) -> Evaluator:
        """Return what measures every adapter, each trained so many times, by several processes."""
        with self._helped(trainings):
            return self._prepared(trainings)

    def _helped(self, trainings: int) -> AbstractContextManager[None]:
        """Return a block in which as many processes prepare as there are workers and work.

        While anything is left the number follows from the settings alone: it sets the number of
        threads of a training, by which its sums are rounded.
        """
        study, run, wanted = self.study, self.study.config.run, self.study.trainings(trainings)
        new = {key for key in wanted if not is_saved(study.adapters[key[0]])}
        trained = {(record.adapter, record.training) for record in self.store.adapters()}
        fits = len(wanted) * len(study.cards) if run.schedule else 0
        pieces = max(fits, len(new) if new - trained else 0)
        count = max(1, min(run.workers, pieces)) if run.engine == "local" else 1
        return helped(partial(_prepare, replace(study, loaded={}), trainings), count)

    def _prepared(self, trainings: int) -> Evaluator:
        study, run = self.study, self.study.config.run
        self._train(trainings)
        evaluator = Evaluator(
            *(study.task, self.models, study.cards, study.config.hardware),
            recalibrated=study.directory / "recalibrated",
            run=run,
        )
        if run.schedule:
            self._fit_schedules(evaluator)
        return evaluator

    def _in_turn[K](self, works: Mapping[K, str]) -> Iterator[K]:
        """Yield the key of each piece of work while this process holds its lease.

        Another process may have done it before.
        """
        left, waited = dict(works), False
        while left:
            before = len(left)
            for key, work in works.items():
                if key in left and self.leases.acquire(work):
                    yield key
                    self.leases.release(work)
                    del left[key]
            if len(left) == before:
                if not waited:
                    waited = True
                    self.progress("waiting for other processes: " + ", ".join(left.values()), 1)
                time.sleep(POLL_SECONDS)

    def _train(self, trainings: int) -> None:
        """Load every adapter, trained by this process or by another on the store."""
        wanted = self.study.trainings(trainings)
        for key in self._in_turn({key: f"adapter {training_folder(*key)}" for key in wanted}):
            self.models[key], self.records[key] = self._trained(key)
            # At once, as each brings a copy of the pre-trained model.
            share_frozen(self.models.values())
        self.models = {key: self.models[key] for key in wanted}

    def _trained(self, key: ModelKey) -> tuple[PeftModel, AdapterRecord]:
        """Train an adapter unless it is trained, and return it as loaded from its folder."""
        study, config, (adapter, training) = self.study, self.study.config, key
        asked = study.adapters[adapter]
        saved = is_saved(asked)
        path = Path(asked) if saved else study.directory / "adapters" / training_folder(*key)
        known = next((r for r in self.store.adapters() if (r.adapter, r.training) == key), None)
        seconds = 0.0
        if known is None and not saved:
            seeded = config.replace(seed=training_seed(config, training))
            fresh = new_adapter(seeded, study.task, asked)
            text = f"training {adapter}" + (f", seed {seeded.run.seed}" if training else "")
            seconds = train_adapter(fresh, seeded, study.task, text, self.progress)
            save_adapter(fresh, path)
        fingerprint = adapter_hash(path)
        if known is not None and known.fingerprint != fingerprint:
            raise _changed(f"adapter in {path}")
        if key not in study.loaded:
            study.loaded[key] = load_with_hash(
                path, config.model.name, study.task, config.model.trust_remote_code
            )
        model, base = study.loaded[key]
        data = data_hash(study.task, study.task.tokenizer_of(model))
        if known is None:
            known = _record(study, key, path, seconds, (fingerprint, base, data))
            self.store.add_adapter(known)
        if known.model_hash != base:
            raise _changed(f"model of the adapter {adapter}")
        if known.data_hash != data:
            raise _changed(f"data of the task {study.task.name}")
        return model, known

    def _fit_schedules(self, evaluator: Evaluator) -> None:
        """Fit and save the schedule of each adapter and device, and give them to the evaluator.

        Ages are fitted that a saved schedule does not have yet.
        """
        study, run = self.study, self.study.config.run
        works = {
            (key, device): f"schedule of {training_folder(*key)} on {device}"
            for device in study.cards
            for key in self.models
        }
        for key, device in self._in_turn(works):
            name = training_folder(*key)
            folder = study.directory / "scheduled" / name / place_name(device)
            known = AgeSchedule.load(folder) if (folder / INDEX_FILE).is_file() else None
            missing = [age for age in run.seconds if known is None or age not in known.adapters]
            if missing or known is None:
                deployment, model = evaluator.deployed_on(device)[key]
                text = f"fitting {name} to {len(missing)} ages of {device}"
                advance = self.progress(text, STEPS * len(missing))
                seed = training_seed(study.config, key[1])
                groups = run.schedule_groups if kind_of(model) in GRASP.adapters else None
                known = fit_schedule(
                    deployment, study.task, missing, groups=groups, seed=seed, model=model,
                    advance=advance, known=known, keep=partial(AgeSchedule.save, path=folder),
                )  # fmt: skip
            evaluator.schedules[key, device] = known


def _changed(what: str) -> ValueError:
    return ValueError(
        f"The {what} differs from the one that this run has measured: restore it, or name another "
        "output folder."
    )


def _record(
    study: Study, key: ModelKey, path: Path, seconds: float, hashes: tuple[str, str, str]
) -> AdapterRecord:
    model, (adapter, training) = study.loaded[key][0], key
    own, head = learned_parameters(model)
    try:
        digital = study.task.scores(model)
        check_metrics(study.task, digital)
    except ValueError as error:
        raise ValueError(
            f"The adapter {adapter} cannot be scored before it is deployed: {error}"
        ) from error
    relative = Path(os.path.relpath(path, study.directory)).as_posix()
    return AdapterRecord(
        *(adapter, study.task.name, own, head, digital, seconds, relative), *hashes, training
    )


def _prepare(study: Study, trainings: int) -> None:
    """Take part in the preparation of a study, in another process."""
    with Store(study.directory / STORE_FILE) as store, Leases(store) as leases:
        progress = logged(silent, study.directory / LOG_FILE)
        Preparation(study, store, leases, progress)._prepared(trainings)
