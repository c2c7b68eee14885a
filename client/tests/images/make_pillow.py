"""Writes pillow.json: what Pillow and the image processors of transformers make of some images.

Pillow 13.0.0, transformers 4.57.6, numpy; no PyTorch is needed. Usage: python make_pillow.py
"""

import io
import json
import pathlib

import numpy
import transformers
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).parent
DRAW = numpy.random.default_rng(7)


def picture(width, height, mode="RGB"):
    """Smooth colours with an edge and some noise."""
    y, x = numpy.mgrid[0:height, 0:width]
    planes = [128 + 90 * numpy.sin(x / 5 + 1), 128 + 100 * numpy.cos(y / 4), 60 + 120 * (x + y > (width + height) / 2)]
    values = numpy.stack(planes, -1) + DRAW.normal(0, 8, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype("uint8")).convert(mode)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode_cases():
    base = picture(19, 14)
    alpha = Image.fromarray(DRAW.integers(0, 256, (14, 19), dtype="uint8"))
    rgba = base.copy()
    rgba.putalpha(alpha)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = base.quantize(20)
    yield "RGB PNG", encoded(base, "PNG")
    yield "RGBA PNG", encoded(rgba, "PNG")
    yield "grey and alpha PNG", encoded(rgba.convert("LA"), "PNG")
    yield "grey PNG", encoded(base.convert("L"), "PNG")
    yield "palette PNG", encoded(palette, "PNG")
    yield "palette PNG with a transparent colour", encoded(palette, "PNG", transparency=3)
    yield "black and white PNG", encoded(base.convert("1"), "PNG")
    yield "BMP", encoded(base, "BMP")
    yield "palette BMP", encoded(palette, "BMP")
    yield "GIF", encoded(palette, "GIF")
    yield "lossless WebP", encoded(base, "WEBP", lossless=True)
    yield "lossy WebP", encoded(base, "WEBP", quality=90)
    yield "JPEG", encoded(base, "JPEG", quality=95, subsampling=0)
    yield "JPEG with halved colours", encoded(base, "JPEG", quality=90, subsampling=2)
    yield "progressive JPEG", encoded(base, "JPEG", quality=90, progressive=True)
    yield "grey JPEG", encoded(base.convert("L"), "JPEG", quality=90)
    yield "CMYK JPEG", encoded(base.convert("CMYK"), "JPEG", quality=95)
    yield "JPEG turned by EXIF", encoded(base, "JPEG", quality=95, subsampling=0, exif=exif)


def rgb(content):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    return {"width": image.width, "height": image.height, "rgb": image.tobytes().hex()}


def prepare_cases():
    vit = {"image_processor_type": "ViTImageProcessor"}
    names = {1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}
    for number, name in names.items():
        yield f"ViT, {name}, smaller", {**vit, "size": {"height": 9, "width": 11}, "resample": number}, (40, 31)
        yield f"ViT, {name}, larger", {**vit, "size": {"height": 21, "width": 17}, "resample": number}, (8, 6)
    yield "ViT, old form", {"feature_extractor_type": "ViTFeatureExtractor", "size": 12, "image_mean": [0.4, 0.5, 0.6],
                            "image_std": [0.2, 0.3, 0.25], "resample": 2, "do_normalize": True}, (30, 20)
    yield "ViT, not normalised", {**vit, "size": {"height": 5, "width": 5}, "do_normalize": False}, (7, 7)
    yield "ViT, rescaled otherwise", {**vit, "size": {"height": 5, "width": 5}, "rescale_factor": 0.01}, (7, 7)
    resnet = {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "do_normalize": True,
              "do_resize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
    yield "ResNet, wide", {**resnet, "size": 14}, (50, 23)
    yield "ResNet, high", {**resnet, "size": {"shortest_edge": 14}}, (23, 50)
    yield "ConvNeXt, an odd share", {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 13},
                                     "crop_pct": 0.8, "resample": 2}, (31, 37)
    yield "DeiT", {"image_processor_type": "DeiTImageProcessor", "size": {"height": 16, "width": 18},
                   "crop_size": {"height": 12, "width": 11}}, (33, 29)
    yield "Bit", {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 16},
                  "crop_size": {"height": 14, "width": 14}}, (45, 28)
    yield "CLIP", {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 12}, "crop_size": 12,
                   "do_convert_rgb": True}, (20, 33)


def processor(config):
    kind = config.get("image_processor_type", config.get("feature_extractor_type"))
    return getattr(transformers, kind.replace("FeatureExtractor", "ImageProcessor"))(**config)


def main():
    decode = [{"name": name, "encoded": content.hex(), **rgb(content)} for name, content in decode_cases()]
    prepare = []
    for name, config, size in prepare_cases():
        image = picture(*size)
        values = processor(config)(image, return_tensors="np")["pixel_values"][0].astype("float32")
        prepare.append({
            "name": name,
            "config": config,
            "image": {"width": image.width, "height": image.height, "rgb": image.tobytes().hex()},
            "shape": list(values.shape),
            "values": [round(float(value), 5) for value in values.flatten()],
        })
    text = json.dumps({"decode": decode, "prepare": prepare}, separators=(",", ":")).replace('{"name"', '\n{"name"')
    (HERE / "pillow.json").write_text(text + "\n")


main()
