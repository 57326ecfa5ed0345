"""Age schedules of a study: one adapter per drift time, fitted on simulated chips and saved."""

import time
from pathlib import Path

from analog_grasp.study.evaluator import Evaluator, ModelKey, place_name, training_folder
from analog_grasp.study.leases import POLL_SECONDS, Leases
from analog_grasp.study.progress import Progress
from analog_grasp.study.study import Study
from analog_grasp.training.schedule import INDEX_FILE, STEPS, AgeSchedule, fit_schedule

FOLDER = "scheduled"
"""The folder of the schedules within that of the run."""


def fit_schedules(study: Study, evaluator: Evaluator, leases: Leases, progress: Progress) -> None:
    """Fit and save the schedule of each adapter and device, and give them to the evaluator.

    Ages that are fitted already, by this process or by another on the same run, are loaded.

    Args:
        study: The study.
        evaluator: Has the trained adapters; its `schedules` are set.
        leases: Divide the work between processes.
        progress: Called for each schedule with ages to fit, and for each of its steps.
    """
    wanted = [(key, device) for device in study.cards for key in evaluator.models]
    while len(evaluator.schedules) < len(wanted):
        before = len(evaluator.schedules)
        for key, device in wanted:
            work = f"schedule of {training_folder(*key)} on {device}"
            if (key, device) not in evaluator.schedules and leases.acquire(work):
                evaluator.schedules[key, device] = _schedule(
                    study, evaluator, key, device, progress
                )
                leases.release(work)
        if len(evaluator.schedules) == before:
            time.sleep(POLL_SECONDS)


def _schedule(
    study: Study, evaluator: Evaluator, key: ModelKey, device: str, progress: Progress
) -> AgeSchedule:
    folder = schedule_folder(study.directory, key, device)
    known = AgeSchedule.load(folder) if (folder / INDEX_FILE).is_file() else None
    missing = [age for age in study.times if known is None or age not in known.adapters]
    if known is not None and not missing:
        return known
    deployment, model = evaluator.deployed_on(device)[key]
    text = f"fitting {training_folder(*key)} to {len(missing)} ages of {device}"
    advance = progress(text, STEPS * len(missing))
    fitted = fit_schedule(
        deployment, study.task, missing, seed=study.config.run.seed, model=model, advance=advance
    )
    if known is not None:
        fitted.adapters |= known.adapters
        fitted.costs |= known.costs
    fitted.save(folder)
    return fitted


def schedule_folder(directory: Path, key: ModelKey, device: str) -> Path:
    """Return the folder of the schedule of an adapter on a device.

    Example:
        >>> schedule_folder(Path("run"), ("grasp", 0), "gaussian:0.1").as_posix()
        'run/scheduled/grasp/gaussian-0.1'
    """
    return directory / FOLDER / training_folder(*key) / place_name(device)
