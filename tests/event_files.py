"""Event files, read back by TensorBoard's own reader."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipe_ray.stages.stage import Stage


def board_folder(stage: Stage, experiment: str) -> str:
    return f"tensorboard/{experiment}/{stage.artifact.label}.s{stage.seed}-{stage.artifact.key}"


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return the values by tag and step that TensorBoard shows of a folder."""
    read = EventAccumulator(str(folder))
    read.Reload()
    points = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    # a list would hide a step that is there twice
    assert all(len({p.step for p in found}) == len(found) for found in points.values())
    return {tag: {p.step: p.value for p in found} for tag, found in points.items()}
