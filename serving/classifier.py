"""One served model: a proved bundle, its open session and its batcher. Encoded pictures in, verdicts out.

Knows no grpc: the service turns what comes out of here into messages.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from bundle.contract import Contract
from bundle.errors import ImageError
from bundle.runtime import OnnxModel
from bundle.scores import Ranked, rank
from serving.batcher import Batcher
from serving.errors import DeadlineExceededError, InvalidRequestError, QueueFullError
from serving.model_metrics import ModelMetrics, Reason
from serving.stages import PictureStages
from serving.steps import Job, Payload, Probabilities, Verdict

_DEFAULT_TOP_K: Final = 5


PictureBatcher = Batcher[Job, Job, Verdict]


class ServedModel:
    """A model that has proved itself and answers. Made by `loading.load_model`."""

    def __init__(self, model: OnnxModel, batcher: PictureBatcher, *, metrics: ModelMetrics) -> None:
        self._batcher = batcher
        self._metrics = metrics
        self.contract: Contract = model.bundle.manifest.contract
        self.digest = model.bundle.digest
        self.provider: str = model.provider  # the one that really runs
        self.precision: str = model.variant.precision

    @property
    def queued_items(self) -> int:
        """How many admitted pictures nobody has taken yet."""
        return self._batcher.queued_items

    def start(self) -> None:
        """Start the batcher's threads and publish that this version serves."""
        self._batcher.start()
        self._metrics.on_ready(**self._identity())

    def submit(
        self,
        images: Sequence[Payload],
        *,
        deadline: float | None = None,
        stages: Sequence[PictureStages] | None = None,
    ) -> list[Future[Verdict]]:
        """Admit all pictures or none; each future gets a verdict, or the picture's own ImageError.

        A picture is encoded bytes, or uint8 (crop_px, crop_px, 3). `deadline` is a time of time.monotonic(). `stages`
        gets the times of each picture. Raises InvalidRequestError, QueueFullError, DeadlineExceededError or
        NotReadyError.
        """
        self._check_shapes(images)
        sizes = [len(image) if isinstance(image, bytes) else image.nbytes for image in images]
        try:
            jobs = [Job(*pair) for pair in zip(images, stages or (None,) * len(images), strict=True)]
            return self._batcher.submit(jobs, sizes_bytes=sizes, deadline=deadline)
        except (QueueFullError, DeadlineExceededError) as error:
            self._metrics.on_reject(_reason(error), count=len(images))
            raise

    def check_room(self, *, deadline: float | None = None) -> None:
        """Raise QueueFullError or DeadlineExceededError, and count it, as `submit` would for one more usual picture."""
        try:
            self._batcher.check_room(deadline=deadline)
        except (QueueFullError, DeadlineExceededError) as error:
            self._metrics.on_reject(_reason(error), count=1)
            self._metrics.on_unanswered()
            raise

    def note_request(self, outcomes: Sequence[Verdict | ImageError], *, seconds: float) -> None:
        """Count a request that this version was asked, and what came of its pictures: nothing where it failed."""
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
        if not verdicts or len(verdicts) < len(outcomes):
            self._metrics.on_unanswered()
            return
        self._metrics.on_request(
            total_s=seconds,
            input_s=sum(verdict.input_s for verdict in verdicts) / len(verdicts),
            inference_s=sum(verdict.inference_s for verdict in verdicts) / len(verdicts),
        )

    def rank(self, row: Probabilities, *, top_k: int = 0, min_score: float = 0.0) -> tuple[Ranked, ...]:
        """Return the best labels of one picture's probabilities (C,); top_k 0 means 5."""
        return rank(row, self.contract.labels, top_k=top_k or _DEFAULT_TOP_K, min_score=min_score)

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued for at most timeout_s seconds; say whether all was done."""
        done = self._batcher.close(timeout_s)
        self._metrics.on_gone(**self._identity())
        return done

    def _check_shapes(self, images: Sequence[Payload]) -> None:
        crop_px = self.contract.preprocess.crop_px
        for place, image in enumerate(images):
            if not isinstance(image, bytes) and image.shape != (crop_px, crop_px, 3):
                raise InvalidRequestError(
                    f"images[{place}]: found shape {image.shape}, wanted {(crop_px, crop_px, 3)}: scaled and cropped"
                )

    def _identity(self) -> dict[str, str]:
        return {"digest": self.digest, "provider": self.provider, "variant": self.precision}


def _reason(error: QueueFullError | DeadlineExceededError) -> Reason:
    return "queue" if isinstance(error, QueueFullError) else "deadline"
