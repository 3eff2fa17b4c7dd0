"""The steps of matterport's network that differ from `forward`: its proposals, and its selection of detections.

As in `forward`, what is not selected keeps its place in the batch, and there is no synchronization per image.
"""

import torch
from torch import Tensor

from .forward import Forward, all_finite, rows_of
from .nms import ABSENT, not_suppressed, select

__all__ = ["MatterportForward"]


class MatterportForward(Forward):
    """As `forward.Forward`, but boxes are xmin, ymin, xmax, ymax, normalised by the canvas.

    A proposal has one class, its best, and is kept if the score of this class is at least `min_score`.
    """

    def limits(self, canvas: tuple[int, int], sizes: Tensor) -> Tensor:
        """Return (B, 4): the part of the canvas that each image covers, normalised."""
        whole = torch.tensor(canvas, dtype=sizes.dtype, device=sizes.device)
        begin = ((whole - sizes) / 2).floor()
        window = torch.cat([begin, begin + sizes - 1], 1) / (whole - 1).repeat(2)
        return window[:, [1, 0, 3, 2]]

    def frames(self, canvas: tuple[int, int], sizes: Tensor) -> Tensor:
        """Return (B, 4): the part of the canvas that each image covers, normalised."""
        return self.limits(canvas, sizes)

    def propose(
        self, features: dict[str, Tensor], canvas: tuple[int, int], limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the region proposals: the same number for each image, filled up with zeros.

        The zeros are processed like other boxes, as in the reference. The maximum number of detections has no effect
        here, as in the reference.

        Reference: `ProposalLayer` in mrcnn/model.py.
        """
        del limits
        rpn = self._network.rpn
        maps = list(features.values())
        logits, offsets = (
            torch.cat([m.permute(0, 2, 3, 1).flatten(1) for m in each], 1).float() for each in rpn.head(maps)
        )
        finite = all_finite(logits) & all_finite(offsets)
        score = logits.nan_to_num().view(len(logits), -1, 2).softmax(-1)[..., 1]
        # Scores that round to 1 are equal: the sort is stable, so that the first one wins on every device.
        score, best = score.sort(dim=1, descending=True, stable=True)
        count = min(rpn.pre_nms_top_n(), score.shape[1])
        score, best = score[:, :count], best[:, :count]
        anchors = torch.cat(self._anchors(canvas, tuple((m.shape[-2], m.shape[-1]) for m in maps)))
        deltas = rows_of(offsets.view(len(offsets), -1, 4), best)
        boxes = rpn.box_coder.decode_single(deltas.flatten(0, 1), anchors[best.flatten()])
        boxes = boxes.nan_to_num().clamp(0, 1).view_as(deltas)

        kept = not_suppressed(boxes.flatten(0, 1), score.flatten(), [count] * len(boxes), rpn.nms_thresh)
        kept = kept.view_as(score)
        wanted = rpn.post_nms_top_n()
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :wanted]
        proposals = rows_of(boxes, order) * kept.gather(1, order)[..., None]
        missing = max(wanted - count, 0)
        proposals = torch.nn.functional.pad(proposals, (0, 0, 0, missing))
        return proposals, torch.ones(proposals.shape[:2], dtype=torch.bool, device=boxes.device), finite

    def choose(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, present: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return image, box, label and score of the detections: at least `min_score`, not suppressed, among the best.

        Reference: `refine_detections_graph` in mrcnn/model.py.
        """
        n_images, n_proposals, n_labels = logits.shape
        scores = logits.nan_to_num().softmax(-1)
        labels = scores.argmax(-1)
        scores = scores.gather(2, labels[..., None])[..., 0].where(present, ABSENT)
        image, row = (torch.isin(labels, self._labels) & (scores >= self._min_score)).nonzero().unbind(1)
        label, score = labels[image, row], scores[image, row]
        picked = deltas.view(n_images, n_proposals, n_labels, 4)[image, row, label]
        boxes = self._network.roi_heads.box_coder.decode_single(picked, proposals[image, row]).nan_to_num()
        window = limits[image]
        boxes = torch.minimum(torch.maximum(boxes, window[:, [0, 1, 0, 1]]), window[:, [2, 3, 2, 3]])
        threshold = self._network.roi_heads.nms_thresh
        sizes = (n_images, n_labels, self._max_detections)
        order, chosen = select(image, label, boxes, score, threshold, sizes)
        best = order[chosen.nonzero().squeeze(1)]
        return image[best], boxes[best], label[best], score[best]
