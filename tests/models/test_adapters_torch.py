"""Models of torchvision, Hugging Face and Ultralytics against the answers of their own code.

All are small and of random weights: no file is fetched.
"""

import json
import pickle

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.ops import box_iou

from af_pipeline.models.adapters.huggingface import HuggingFaceDetector
from af_pipeline.models.adapters.torchvision import TorchvisionDetector
from af_pipeline.models.adapters.ultralytics import UltralyticsDetector
from af_pipeline.models.detector import Selection, select_detections
from af_pipeline.settings.detector import ForeignConfig

NAMES = ("a", "b", "c")


def started(detector):
    """It as it reaches an actor: through pickle, then started."""
    sent = pickle.loads(pickle.dumps(detector))
    sent.start("cpu", 1)
    return sent


def noise(count, height, width):
    return np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def same_alone(detector, batch):
    """Whether a batch gives the same as its images one by one."""
    for image, (boxes, scores) in zip(batch, detector(batch), strict=True):
        alone, table = detector(image[None])[0]
        assert np.allclose(boxes, alone, atol=1e-2)
        assert np.allclose(scores, table, atol=1e-5)
    return True


def livelier(model, std=0.2):
    """Weights so large that answers differ from box to box."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(std=std)
    return model.eval()


def averaging(model):
    """Batch norms that take the mean of what they see, or answers would hardly differ; its
    convolutions."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]


# ---- torchvision


def ssd(**arguments):
    torch.manual_seed(0)
    build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    model = build(weights=None, weights_backbone=None, num_classes=4, **arguments)
    averaging(model)
    with torch.no_grad():
        for _ in range(2):
            model.head(list(model.backbone(torch.rand(3, 3, 320, 320)).values()))
    for layer in averaging(model.head.classification_head):
        torch.nn.init.normal_(layer.weight, std=0.02)
    return model.eval()


@pytest.fixture(scope="module")
def ssd_state():
    return ssd().state_dict()


@pytest.mark.parametrize("nested", ["", "model", "state_dict", "safetensors"])
def test_a_state_dict_answers_as_the_stock_model(tmp_path, ssd_state, nested):
    """An SSD has one size of input, at which its own resize does nothing."""
    path = tmp_path / ("m.safetensors" if nested == "safetensors" else "m.pth")
    if nested == "safetensors":
        save_file({name: value.contiguous() for name, value in ssd_state.items()}, path)
    else:
        torch.save({nested: ssd_state, "epoch": 3} if nested else ssd_state, path)
    arguments = {"detections_per_img": 300, "topk_candidates": 100}  # some of each class
    config = ForeignConfig(
        path=str(path),
        kind="torchvision",
        constructor="ssdlite320_mobilenet_v3_large",
        arguments=arguments,
        class_names=NAMES,
    )
    detector = started(TorchvisionDetector(config))
    assert detector.shape == (320, 320)
    batch = noise(2, 320, 320)
    stock = ssd(**arguments)
    stock.load_state_dict(ssd_state)
    with torch.inference_mode():
        own = stock(list(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255))
    for (boxes, scores), one in zip(detector(batch), own, strict=True):
        assert 100 < len(boxes) <= 300
        assert boxes == pytest.approx(one["boxes"].numpy(), abs=1e-3)
        assert scores.argmax(1).tolist() == (one["labels"] - 1).tolist()
        assert scores.max(1) == pytest.approx(one["scores"].numpy(), abs=1e-5)
        assert len(set(scores.argmax(1))) > 1
    assert same_alone(detector, batch)


def test_a_model_of_any_size_is_never_resized(tmp_path):
    """Its limits are set to those of the image for the stock model, and are of no effect here."""
    build = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    torch.manual_seed(0)
    stock = build(weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=200)
    torch.nn.init.normal_(stock.roi_heads.box_predictor.cls_score.weight, std=0.3)
    stock.eval()
    torch.save(stock.state_dict(), tmp_path / "m.pth")
    config = ForeignConfig(
        path=str(tmp_path / "m.pth"),
        constructor="fasterrcnn_mobilenet_v3_large_320_fpn",
        class_names=NAMES,
    )
    assert config.reader == "torchvision"
    detector = started(TorchvisionDetector(config))
    assert detector.shape is None
    batch = noise(2, 96, 160)
    with torch.inference_mode():
        own = stock(list(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255))
    for (boxes, scores), one in zip(detector(batch), own, strict=True):
        assert len(boxes) > 3
        assert boxes == pytest.approx(one["boxes"].numpy(), abs=1e-3)
        assert scores.max(1) == pytest.approx(one["scores"].numpy(), abs=1e-5)
    assert same_alone(detector, batch)


# ---- Hugging Face

LABELS = dict(enumerate(NAMES))
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "embedding_size": 8}


def yolos(hf):
    """A softmax over the classes and "no object"."""
    config = hf.YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=[64, 96], num_detection_tokens=10, id2label=LABELS,
    )  # fmt: skip
    return hf.YolosForObjectDetection(config), hf.YolosImageProcessor()


def rt_detr(hf):
    """A sigmoid for each class; its processor says that nothing is normalised."""
    back = hf.RTDetrResNetConfig(
        **STAGES, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )
    config = hf.RTDetrConfig(
        backbone_config=back, d_model=32, encoder_hidden_dim=32, encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=20,
        decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32, decoder_layers=1, num_denoising=0,
        id2label=LABELS,
    )  # fmt: skip
    return hf.RTDetrForObjectDetection(config), hf.RTDetrImageProcessor()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("build", [yolos, rt_detr])
def test_a_folder_answers_as_the_library_does(tmp_path, build, half):
    """By their processor without its resize, and their own reading of logits and boxes."""
    hf = pytest.importorskip("transformers")
    model, processor = build(hf)
    model = livelier(model)
    if half:
        model = model.half().float()  # so that the weights are those of the file
    (model.half() if half else model).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model.float()
    detector = started(HuggingFaceDetector(ForeignConfig(path=str(tmp_path))))
    assert detector.class_names == NAMES
    batch = noise(2, 64, 96)
    given = processor(list(batch), do_resize=False, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(pixel_values=given["pixel_values"])
    own = processor.post_process_object_detection(outputs, threshold=0, target_sizes=[(64, 96)] * 2)
    for (boxes, scores), one in zip(detector(batch), own, strict=True):
        best = one["scores"].argmax()
        at = np.abs(boxes - one["boxes"][best].numpy()).max(1).argmin()
        assert boxes[at] == pytest.approx(one["boxes"][best].numpy(), abs=1e-2)
        assert scores[at].argmax() == one["labels"][best]
        assert scores.max() == pytest.approx(float(one["scores"].max()), abs=1e-4)
        assert scores.max(1).std() > 1e-3
        every = np.sort(one["scores"].numpy())[::-1][:10]
        flat = scores.max(1) if build is yolos else scores.ravel()
        assert np.sort(flat)[::-1][:10] == pytest.approx(every, abs=1e-4)
    assert same_alone(detector, batch)


def test_texts_are_looked_for(tmp_path):
    """OWL-ViT with letters for its vocabulary, at a size that it was not made for."""
    hf = pytest.importorskip("transformers")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["!", *letters, *(f"{one}</w>" for one in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = hf.CLIPTokenizer.from_pretrained(tmp_path)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    end = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": 0}
    config = hf.OwlViTConfig(
        text_config={"vocab_size": len(words), **end, **size},
        vision_config={"image_size": 64, "patch_size": 16, **size},
        projection_dim=32,
    )
    model = livelier(hf.OwlViTForObjectDetection(config))
    processor = hf.OwlViTProcessor(hf.OwlViTImageProcessor(), tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    prompts = ("a cat", "dog")
    detector = started(HuggingFaceDetector(ForeignConfig(path=str(tmp_path), prompts=prompts)))
    assert detector.class_names == prompts
    batch = noise(2, 64, 96)
    given = processor(text=[list(prompts)], padding=True, return_tensors="pt")
    images = processor.image_processor(
        list(batch), do_resize=False, do_center_crop=False, return_tensors="pt"
    )
    for i, (boxes, scores) in enumerate(detector(batch)):
        with torch.inference_mode():
            own = model(
                pixel_values=images["pixel_values"][i : i + 1],
                interpolate_pos_encoding=True,
                **given,
            )
        assert scores == pytest.approx(own.logits[0].sigmoid().numpy(), abs=1e-4)
        relative = torchvision.ops.box_convert(own.pred_boxes[0], "cxcywh", "xyxy").numpy()
        assert boxes == pytest.approx(relative * [96, 64, 96, 64], abs=1e-2)
    other = ForeignConfig(path=str(tmp_path), prompts=("zebra",))
    assert started(HuggingFaceDetector(other))(batch)[0][1].shape == (24, 1)


# ---- Ultralytics


def test_a_yolo_answers_as_its_own_package(tmp_path):
    """Boxes and scores after its NMS; it takes the best class of a box, ours every class."""
    yolo = pytest.importorskip("ultralytics").YOLO
    torch.manual_seed(1)
    made = yolo("yolov8n.yaml")
    image = noise(1, 640, 640)[0]
    with torch.no_grad():
        for layer in averaging(made.model.train()):
            if layer.out_channels == 80 and layer.bias is not None:
                layer.bias.fill_(-3)
        for batch in (torch.rand(2, 3, 320, 320), torch.from_numpy(image[None] / np.float32(255))):
            made.model(batch if len(batch) == 2 else batch.permute(0, 3, 1, 2))
    path = str(tmp_path / "m.pt")
    made.save(path)
    config = ForeignConfig(path=path, allow_pickle=True)
    detector = started(UltralyticsDetector(config))
    assert len(detector.class_names) == 80
    own = yolo(path).predict(
        image[..., ::-1], imgsz=640, conf=0.03, iou=0.7, max_det=50, rect=False, verbose=False
    )[0].boxes  # fmt: skip
    boxes, scores = detector(image[None])[0]
    best = torch.from_numpy(scores * (scores == scores.max(1, keepdims=True)))
    beyond = torch.from_numpy(boxes)[:, None] + 1000  # as it does, cut to the image at the end
    found = select_detections(best, beyond, torch.tensor([3000, 3000]), Selection(0.03, 0.7, 50))
    overlap = box_iou(own.xyxy, (found.boxes - 1000).clamp(0, 640)) > 0.99
    near = (own.conf[:, None] - found.scores).abs() < 1e-3 * own.conf[:, None]
    assert len(own) == len(found.scores) == 50
    assert (overlap & near & (own.cls[:, None] == found.labels)).any(1).float().mean() > 0.9
    assert same_alone(detector, noise(2, 64, 96))


def test_key_points_of_a_yolo_are_no_classes(tmp_path):
    yolo = pytest.importorskip("ultralytics").YOLO
    path = str(tmp_path / "m.pt")
    yolo("yolov8n-pose.yaml").save(path)
    detector = started(UltralyticsDetector(ForeignConfig(path=path, allow_pickle=True)))
    assert len(detector.class_names) == 1
    assert detector(noise(1, 64, 96))[0][1].shape == (126, 1)
