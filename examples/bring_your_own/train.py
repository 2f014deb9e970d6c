"""Train a stock torchvision detector, as anybody would: it knows nothing of AutoFocus.

python examples/bring_your_own/train.py --images DIR --annotations COCO.json --output mine.pth
    [--minutes 8] [--side 256] [--enlarge 1.5]

Random crops, enlarged, flips, Adam; stops by the clock. Prints the class names in label order.
"""

import argparse
import json
import random
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn

BATCH = 4


Sample = tuple[np.ndarray, np.ndarray, list[int]]


def load(images: Path, annotations: Path) -> tuple[list[str], list[Sample]]:
    """Class names, and of each image its pixels, boxes [N, 4] (corners) and labels from 1 on."""
    data = json.loads(annotations.read_text())
    categories = sorted(data["categories"], key=lambda one: one["id"])
    label = {one["id"]: number for number, one in enumerate(categories, start=1)}
    found: dict[int, list] = {one["id"]: [] for one in data["images"]}
    for one in data["annotations"]:
        found[one["image_id"]].append(one)
    samples = []
    for image in data["images"]:
        own = found[image["id"]]
        boxes = np.array([one["bbox"] for one in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [label[one["category_id"]] for one in own]
        pixels = cv2.imread(str(images / image["file_name"]))
        if pixels is None:
            raise SystemExit(f"cannot read {image['file_name']}")
        samples.append((pixels[..., ::-1], boxes, labels))
    return [one["name"] for one in categories], samples


def crop(sample: Sample, side: int, enlarge: float) -> tuple:
    """A random square of the image, enlarged, with the boxes whose middle lies in it."""
    pixels, boxes, labels = sample
    factor = enlarge * random.uniform(0.5, 1.2)
    native = round(side / factor)
    height, width = pixels.shape[:2]
    x, y = (random.randint(0, max(0, size - native)) for size in (width, height))
    if len(boxes) and random.random() < 0.8:
        middle = boxes[random.randrange(len(boxes))].reshape(2, 2).mean(0)
        x, y = (
            int(min(max(0, at - random.uniform(0.2, 0.8) * native), max(0, size - native)))
            for at, size in zip(middle, (width, height), strict=True)
        )
    part = np.full((native, native, 3), 114, np.uint8)
    own = pixels[y : y + native, x : x + native]
    part[: own.shape[0], : own.shape[1]] = own
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2 - (x, y)
    inside = ((middles > 0) & (middles < native)).all(1)
    scaled = np.clip((boxes[inside] - (x, y, x, y)) * side / native, 0, side)
    image = cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR)
    if random.random() < 0.5:
        image = image[:, ::-1]
        scaled[:, [0, 2]] = side - scaled[:, [2, 0]]
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    target = {
        "boxes": torch.from_numpy(scaled.astype(np.float32)),
        "labels": torch.tensor(labels)[torch.from_numpy(inside)]
        if labels
        else torch.zeros(0).long(),
    }
    return tensor, target


def main() -> None:
    """Train and save the state dict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--enlarge", type=float, default=1.5)
    given = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    names, samples = load(given.images, given.annotations)
    model = fasterrcnn_mobilenet_v3_large_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=len(names) + 1,
        min_size=given.side,
        max_size=given.side,
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=100,
        box_batch_size_per_image=32,
    )
    optimiser = torch.optim.AdamW(model.parameters(), 5e-4)
    began, step, mean = time.time(), 0, 0.0
    while (spent := (time.time() - began) / 60) < given.minutes:
        for group in optimiser.param_groups:
            group["lr"] = 5e-4 * min(1.0, (step + 1) / 50) * max(0.02, 1 - spent / given.minutes)
        batch = [crop(random.choice(samples), given.side, given.enlarge) for _ in range(BATCH)]
        losses = model([image for image, _ in batch], [target for _, target in batch])
        loss = sum(losses.values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        step, mean = step + 1, mean + float(loss.detach())
        if step % 100 == 0:
            print(f"step {step}  {spent:.1f} min  loss {mean / 100:.3f}", flush=True)
            mean = 0.0
    torch.save(model.state_dict(), given.output)
    print(f"saved {given.output}; detector.class_names=[{', '.join(names)}]")


if __name__ == "__main__":
    main()
