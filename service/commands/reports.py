"""What an evaluation found, as text for people or JSON for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from service.commands.terminal import printable
from service.evaluation.comparison import Comparison
from service.evaluation.ground_truth import Known
from service.evaluation.tally import TOP, Score, Tally, wilson_interval
from service.images.names import LeftOut
from service.model.postprocess import top_k
from service.predictors.types import Fault, PredictorModel, Ranking, ScoresByBoth


@dataclass(slots=True)
class Evaluation:
    """An evaluation under way: `planned` images of which the tally counts those that are done."""

    model: PredictorModel
    planned: int
    left_out: LeftOut = field(default_factory=LeftOut)
    """What the folder holds under names that no image has."""
    unlisted: int = 0
    """Images of the folder that the ground truth does not name."""
    tally: Tally = field(default_factory=Tally)
    faults: dict[str, Fault] = field(default_factory=dict)
    """Images that could not be used, by their paths."""
    comparison: Comparison | None = None
    """Of the fast resize with the exact one, where both were asked for."""

    def add(self, image: Known, result: Ranking | ScoresByBoth | Fault) -> None:
        """Count one image; the scores by both resizes are for a comparison."""
        if isinstance(result, Fault):
            self.faults[image.name] = result
            self.tally.add(image.class_id, [])
            if self.comparison is not None:
                self.comparison.add_unusable(image.class_id)
        elif isinstance(result, ScoresByBoth):
            assert self.comparison is not None
            self.tally.add(image.class_id, [class_id for class_id, _ in top_k(result.exact, TOP)])
            self.comparison.add(image.name, image.class_id, result.exact, result.fast)
        else:
            self.tally.add(image.class_id, [prediction.class_id for prediction in result])


def as_json(evaluation: Evaluation, *, confusions: int, per_class: bool) -> str:
    """Return the report as one JSON object."""
    tally, labels = evaluation.tally, evaluation.model.labels
    report: dict[str, Any] = {
        "model": {"name": evaluation.model.name, "version": evaluation.model.version},
        "resize": evaluation.model.resize,
        "temperature": evaluation.model.temperature,
        "complete": tally.all.images == evaluation.planned,
        **_counted(tally.all),
        **({} if evaluation.comparison is None else {"compared": _compared(evaluation.comparison, evaluation.model)}),
        "unusable": [
            {"path": path, "code": fault.code, "detail": fault.detail} for path, fault in evaluation.faults.items()
        ],
        "left_out": evaluation.left_out.as_dict(),
        "unlisted_images": evaluation.unlisted,
        "confusions": [
            {
                "class_id": truth,
                "label": labels[truth].name,
                "predicted_class_id": predicted,
                "predicted_label": labels[predicted].name,
                "images": count,
            }
            for (truth, predicted), count in tally.most_confused(confusions)
        ],
    }
    if per_class:
        report["classes"] = [
            {"class_id": class_id, "label": labels[class_id].name, **_counted(score)}
            for class_id, score in sorted(tally.by_class.items())
        ]
    return json.dumps(report, indent=2)


def _counted(score: Score) -> dict[str, Any]:
    """Return a score's numbers; shares are of 1."""
    counted: dict[str, Any] = {"images": score.images}
    for name, correct in (("top1", score.top1), ("top5", score.top5)):
        share = correct / score.images if score.images else None
        counted[name] = {
            "correct": correct,
            "accuracy": share,
            "interval_95": wilson_interval(correct, score.images),
        }
    return counted


def _compared(comparison: Comparison, model: PredictorModel) -> dict[str, Any]:
    """Return what another resize changes; shares are of 1, and of all images."""
    images, largest = comparison.tally.all.images, comparison.largest
    return {
        "resize": comparison.resize,
        **_counted(comparison.tally.all),
        "moved_images": comparison.moved,
        "changed_top1": {
            "images": comparison.changed,
            "share": comparison.changed / images if images else None,
            "became_right": comparison.righted,
            "became_wrong": comparison.wronged,
        },
        "largest_score_difference": largest
        and {
            "difference": largest.difference,
            "class_id": largest.class_id,
            "label": model.labels[largest.class_id].name,
            "path": largest.image,
        },
    }


def as_text(evaluation: Evaluation, *, confusions: int, per_class: bool) -> str:
    """Return the report for people."""
    tally, model = evaluation.tally, evaluation.model
    done = "" if tally.all.images == evaluation.planned else f" of {evaluation.planned}: the rest was not reached"
    lines = [
        f"model     {model.name} version {model.version}",
        f"resize    {model.resize}",
        f"images    {tally.all.images}{done}",
        f"top-1     {_share(tally.all.top1, tally.all.images)}",
        f"top-5     {_share(tally.all.top5, tally.all.images)}",
    ]
    if evaluation.faults:
        lines.append(f"unusable  {len(evaluation.faults)} images, named above, which count as wrong")
    if evaluation.left_out:
        lines.append(f"left out  {printable(evaluation.left_out.describe())}")
    if evaluation.unlisted:
        lines.append(f"unlisted  {evaluation.unlisted} images, which the ground truth does not name")
    if evaluation.comparison is not None:
        lines += ["", *_compared_lines(evaluation.comparison, model)]
    shown = tally.most_confused(confusions)
    if shown:
        lines += ["", "images  confused"]
    for (truth, predicted), count in shown:
        lines.append(f"{count:>6}  {_label(model, truth)} taken for {_label(model, predicted)}")
    if per_class:
        lines += ["", "images   top-1    top-5   class"]
        for class_id, score in sorted(tally.by_class.items()):
            first, five = score.top1 / score.images, score.top5 / score.images
            lines.append(f"{score.images:>6}  {first:7.2%}  {five:7.2%}  {_label(model, class_id)}")
    return "\n".join(lines)


def _compared_lines(comparison: Comparison, model: PredictorModel) -> list[str]:
    """Return the figures of another resize under those of the first, and what it changes."""
    score, largest = comparison.tally.all, comparison.largest
    lines = [
        f"resize    {comparison.resize}",
        f"moved     {comparison.moved} of {score.images} images; the others have the same pixels",
        f"top-1     {_share(score.top1, score.images)}",
        f"top-5     {_share(score.top5, score.images)}",
    ]
    if score.images:
        share = f"{comparison.changed / score.images:7.2%}  ({comparison.changed} of {score.images}"
        turned = f"{comparison.righted} became right, {comparison.wronged} wrong"
        lines.append(f"changed   {share} have another first class: {turned})")
    if largest is not None:
        place = f"{_label(model, largest.class_id)} of {printable(largest.image)}"
        lines.append(f"score     {largest.difference:.4f} is the largest difference: {place}")
    return lines


def _share(correct: int, images: int) -> str:
    if not images:
        return "none"
    low, high = wilson_interval(correct, images)
    return f"{correct / images:7.2%}  ({correct} of {images}; 95 % confidence: {low:.2%} to {high:.2%})"


def _label(model: PredictorModel, class_id: int) -> str:
    return f"{class_id} {printable(model.labels[class_id].name)}"
