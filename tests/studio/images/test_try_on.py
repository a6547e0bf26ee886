"""Try-on scenes: what is refused, how pictures become samples, and runs with tiny models."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from image_tools.diffusion.loading import load_folder
from image_tools.tryon.cat_vton_weights import write_attention
from image_tools.tryon.extend import widen_conv_in
from image_tools.tryon.pose_files import read_keypoints
from image_tools.tryon.pose_maps import part_colors
from scenes.wardrobe.samples import PairConfig, draw_pairs
from studio.config import load_task
from studio.errors import ConfigError, StudioError
from studio.images.reading import picture_paths
from studio.images.tryon_inputs import read_sample
from studio.scene_file import preset_names
from studio.training.tryon_data import keypoint_shares
from tests.image_tools.tryon.people import SIZE, person_keypoints, person_maps
from tests.image_tools.tryon.tiny_idm import SIZE as TINY
from tests.image_tools.tryon.tiny_idm import tiny_idm, write_idm
from tests.studio.images.conftest import read
from tests.studio.images.test_picture_runs import run_of
from tests.tiny_models import write_pipeline

ROOT = Path(__file__).resolve().parents[3]
GARMENT = {"image": "shirt.png", "category": "upper", "caption": "a red shirt"}
IDM = {"kind": "idm_vton", "model": "IDM-VTON"}
BOOTCOMP = {"kind": "bootcomp", "encoder": "comp"}
VITON = {"kind": "stable_viton", "model": "VITONHD.ckpt", "image_encoder": "clip"}
LADI = {
    "kind": "ladi_vton",
    **dict.fromkeys(("unet", "emasc", "adapter", "warping"), "some.pth"),
    "image_encoder": "clip",
}


def save(path: Path, size: tuple[int, int], seed: int = 0) -> str:
    """A picture of random pixels; ``size`` is height and width."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def save_mask(path: Path, size: tuple[int, int]) -> str:
    """White in the middle."""
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[size[0] // 4 : 3 * size[0] // 4, size[1] // 4 : 3 * size[1] // 4] = 255
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Reads a try-on scene with these settings."""
    monkeypatch.chdir(tmp_path)

    def read_scene(**settings):
        scene = {
            "task": "try_on",
            "prompt": "model is wearing a red shirt",
            "person": "person.png",
            "mask": "mask.png",
            "garments": [GARMENT],
            "method": IDM,
            "size": list(SIZE),
        }
        path = tmp_path / "scene.yaml"
        path.write_text(yaml.safe_dump(scene | settings), encoding="utf-8")
        return load_task(path).config

    return read_scene


REFUSED = {
    "garments: is empty": {"garments": []},
    "garments: has 2 entries - expected one for idm_vton": {"garments": [GARMENT, GARMENT]},
    "garments.0.category: is 'bag', which idm_vton does not know": {
        "garments": [{**GARMENT, "category": "bag"}]
    },
    "person: is empty - expected a picture for idm_vton": {"person": None},
    "mask: is empty, and so is body.parse": {"mask": None},
    "body.keypoints: is empty - expected a file for masks of idm_vton": {
        "mask": None,
        "body": {"parse": "parse.png"},
    },
    "body.densepose: is empty - expected a file for masks of cat_vton": {
        "mask": None,
        "body": {"parse": "parse.png"},
        "masking": {"algorithm": "cat_vton"},
    },
    "body.keypoints: is empty - ladi_vton needs OpenPose's JSON": {"method": LADI},
    "body.densepose: is empty - stable_viton needs a picture of the person's body parts": {
        "method": VITON
    },
}


@pytest.mark.parametrize(("words", "settings"), REFUSED.items())
def test_scenes_that_cannot_be_meant_are_refused(words, settings, load):
    with pytest.raises(ConfigError) as told:
        load(**settings)
    assert words in str(told.value)


def test_a_category_that_nobody_knows_is_refused(load):
    with pytest.raises(ConfigError, match=r"category.*skirt"):
        load(garments=[{**GARMENT, "category": "skrit"}])


def documented_commands() -> dict[str, list[str]]:
    """Overrides of the commands that the docs open with, by preset."""
    text = (ROOT / "docs/tryon.md").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("studio run tryon")]
    return {words[2]: words[3:] for words in lines}


def test_there_is_a_command_for_every_method_that_names_all_its_files():
    commands = documented_commands()
    assert set(commands) == {name for name in preset_names() if name.startswith("tryon-")}
    for preset, overrides in commands.items():
        config = load_task(preset, overrides).config
        files = {key for key, _ in picture_paths(config)}
        files |= {f"method.{key}" for key, _ in config.method.models()}
        files |= {"body.keypoints"} if config.body.keypoints else set()
        assert files <= {override.partition("=")[0] for override in overrides}
    without = [one for one in commands["tryon-idm"] if not one.startswith("body.")]
    assert load_task("tryon-idm", [*without, "body.densepose=null"]).config.body.densepose is None


def write_person(folder: Path) -> dict[str, str]:
    """A drawn person with everything that other programs find."""
    maps = person_maps()
    save(folder / "person.png", SIZE)
    save(folder / "shirt.png", (30, 60), seed=1)
    Image.fromarray(maps.parse.astype(np.uint8)).save(folder / "parse.png")
    colors = part_colors(torch.from_numpy(maps.parts)[None])[0]
    Image.fromarray((255 * colors).round().byte().numpy()).save(folder / "densepose.png")
    points = person_keypoints() * np.array([SIZE[1], SIZE[0], 0.9])
    numbers = {"people": [{"pose_keypoints_2d": points.ravel().tolist()}]}
    (folder / "keypoints.json").write_text(json.dumps(numbers))
    names = {"parse": "parse.png", "densepose": "densepose.png", "keypoints": "keypoints.json"}
    return names


def test_pictures_become_a_sample(load, tmp_path):
    body = write_person(tmp_path)
    for algorithm in ("idm_vton", "cat_vton"):
        masking = {"algorithm": algorithm, "mode": "tight", "arm_width": 45.0}
        sample = read_sample(load(mask=None, body=body, masking=masking))
        mask = sample.mask[0, ..., 0].numpy().astype(bool)
        maps = person_maps()
        assert mask[maps.labelled("upper")].all()
        assert not mask[maps.labelled("face", "pants", "shoes")].any()
    assert sample.person.shape == (1, *SIZE, 3)
    assert np.array_equal(sample.parse[0].numpy(), maps.parse)
    assert torch.allclose(
        sample.keypoints[0, :, :2], torch.from_numpy(person_keypoints())[:, :2], atol=6e-3
    )
    shirt = sample.garments[0].images[0]
    assert shirt.shape == (*SIZE, 3)
    assert (shirt[:30] == 1.0).all()  # twice as wide as high, so there is white above


def test_keypoints_are_found_where_no_file_has_them(load, tmp_path):
    pairs = draw_pairs(PairConfig(height=192, other=False), split="test", first=5, count=1)
    size = tuple(pairs.worn.rgb.shape[1:3])
    pixels = (255 * pairs.worn.rgb[0]).round().byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "person.png")
    save(tmp_path / "shirt.png", size)
    save_mask(tmp_path / "mask.png", size)
    body = {"finder": "movenet"}
    config = load(size=list(size), method=LADI, body=body)
    found, true = read_sample(config).keypoints[0], keypoint_shares(pairs)[0]
    is_seen = (found[:, 2] > 0) & (true[:, 2] > 0)
    assert int(is_seen.sum()) >= 14
    assert float((found - true)[is_seen, :2].abs().mean()) < 0.05
    Image.new("RGB", size[::-1], (128, 128, 128)).save(tmp_path / "person.png")
    with pytest.raises(ConfigError, match=r"body\.finder: sees nobody in 'person\.png'"):
        read_sample(config)
    with pytest.raises(ConfigError, match=r"min_score is 2\.0"):
        load(body={**body, "min_score": 2.0})


def test_pictures_of_other_sizes_are_refused_by_their_keys(load, tmp_path):
    body = write_person(tmp_path)
    save_mask(tmp_path / "mask.png", (64, 48))
    with pytest.raises(ConfigError, match=r"mask: 'mask\.png' is 48x64 pixels - expected 96x128"):
        read_sample(load())
    with pytest.raises(ConfigError, match=r"person: .* is 96x128 pixels - expected the aspect"):
        read_sample(load(size=[96, 96]))
    Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(ConfigError, match="mask: is black everywhere"):
        read_sample(load())
    numbers = tmp_path / "numbers.png"
    Image.fromarray(person_maps().parts.astype(np.uint8)).save(numbers)
    with pytest.raises(ConfigError, match=r"body\.densepose: .* has no byte above 23, so these"):
        read_sample(load(body={"densepose": str(numbers)}))
    (tmp_path / "keypoints.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"body\.keypoints: Keypoints .* cannot be read \(KeyE"):
        read_sample(load(body=body))


def test_bootcomp_takes_lower_garments(load):
    """The authors' example has one, and pants and skirts are told apart where that is known."""
    for category in ("lower", "pants", "skirt", "bag"):
        config = load(garments=[{**GARMENT, "category": category}], method=BOOTCOMP)
        assert config.garments[0].category == category


# The colours that public label maps (SCHP, VITON-HD) show numbers in: those of Pascal VOC.
VOC = {0: (0, 0, 0), 5: (255, 85, 0), 9: (0, 85, 85), 13: (0, 0, 255)}


def lip_labels() -> np.ndarray:
    """A face, a top and pants."""
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[8:30, 38:58], labels[30:72, 34:62], labels[72:120, 36:60] = 13, 5, 9
    return labels


@pytest.mark.parametrize("mode", ["P", "L", "I", "I;16"])
def test_labels_are_read_by_their_numbers(mode, load, tmp_path):
    """Of pictures with a palette, too, whatever it shows."""
    body = write_person(tmp_path)
    labels = lip_labels()
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette([byte for k in range(20) for byte in VOC.get(k, (k, k, k))])
    elif mode != "L":
        picture = Image.fromarray(labels.astype(np.int32 if mode == "I" else np.uint16))
    body |= {"parse": "labels.tif" if mode == "I" else "labels.png", "layout": "lip"}
    picture.save(tmp_path / body["parse"])
    assert Image.open(tmp_path / body["parse"]).mode == mode
    masking = {"algorithm": "viton_hd", "mode": "tight", "arm_width": 45.0}
    sample = read_sample(load(mask=None, body=body, masking=masking))
    assert np.array_equal(sample.parse[0].numpy(), labels)
    mask = sample.mask[0, ..., 0].numpy() > 0
    assert mask[labels == 5].all()
    assert not mask[labels == 13].any()


def test_colours_and_grey_levels_are_no_labels(load, tmp_path):
    """As greys the colours of a top and a face would be other numbers, and a wrong mask."""
    body = {**write_person(tmp_path), "layout": "lip"}
    colors = np.zeros((*SIZE, 3), dtype=np.uint8)
    for number, color in VOC.items():
        colors[lip_labels() == number] = color
    for mode in ("RGB", "RGBA"):
        Image.fromarray(colors).convert(mode).save(tmp_path / "parse.png")
        with pytest.raises(
            ConfigError, match=r"body\.parse: 'parse\.png' has colours - expected a"
        ):
            read_sample(load(mask=None, body=body))
    Image.fromarray(colors).convert("L").save(tmp_path / "parse.png")
    with pytest.raises(ConfigError, match=r"has a pixel of 126 - expected labels from 0 to 19"):
        read_sample(load(mask=None, body=body))
    Image.fromarray(np.full(SIZE, 19, dtype=np.uint8)).save(tmp_path / "parse.png")
    with pytest.raises(ConfigError, match=r"from 0 to 18, body\.layout being atr"):
        read_sample(load(mask=None, body={**body, "layout": "atr"}))


def test_body_25_lacks_the_middle_of_the_hips(tmp_path):
    points = np.arange(1, 76, dtype=float).reshape(25, 3)
    points[4] = (0.0, 0.0, 0.0)
    path = tmp_path / "keypoints.json"
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": points.ravel().tolist()}]}))
    read_points = read_keypoints(path, (100, 100))[0]
    kept = np.delete(points, 8, axis=0)[:18]
    assert np.allclose(read_points[:, :2] * 100 - 0.5, kept[:, :2], atol=1e-4)
    assert read_points[:, 2].tolist() == [1.0] * 4 + [0.0] + [1.0] * 13
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": [1.0] * 9}]}))
    with pytest.raises(StudioError, match="has 3 keypoints"):
        read_keypoints(path, (100, 100))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> Path:
    """A tiny SDXL."""
    return write_pipeline(tmp_path_factory.mktemp("pipelines") / "sdxl", "sdxl")


@pytest.fixture
def tiny_scene(tmp_path, sdxl) -> dict:
    """Settings of a scene with a tiny prior and pictures of its size."""
    height, width = TINY
    return {
        "task": "try_on",
        "prompt": "model is wearing a red shirt",
        "prior": {"kind": "diffusers", "model": str(sdxl)},
        "sampler": {"steps": 2, "guidance_scale": 2.0, "eta": 1.0},
        "size": [height, width],
        "count": 1,
        "person": save(tmp_path / "person.png", TINY),
        "mask": save_mask(tmp_path / "mask.png", TINY),
        "garments": [{**GARMENT, "image": save(tmp_path / "shirt.png", TINY, seed=1)}],
    }


def run(studio, tmp_path, scene: dict) -> Path:
    """Run a scene."""
    path = tmp_path / "scene.yaml"
    path.write_text(yaml.safe_dump(scene), encoding="utf-8")
    return run_of(studio("run", str(path), "--out", "runs", "--json"))


def same_outside(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether nothing changed outside of the mask, and something inside."""
    inside = np.zeros(TINY, dtype=bool)
    inside[TINY[0] // 4 : 3 * TINY[0] // 4, TINY[1] // 4 : 3 * TINY[1] // 4] = True
    return np.array_equal(before[~inside], after[~inside]) and not np.array_equal(before, after)


def test_a_person_is_dressed_inside_of_the_mask_alone(studio, tmp_path, tiny_scene, sdxl):
    prior = load_folder(sdxl, torch.device("cpu"))
    folder = write_idm(tiny_idm(prior), tmp_path / "IDM-VTON")
    done = run(studio, tmp_path, tiny_scene | {"method": {**IDM, "model": str(folder)}})
    names = {path.name for path in (done / "images").iterdir()}
    assert names == {"person-s0.png", "garment1.png", "mask.png", "dressed-s0.png"}
    assert same_outside(read(done, "person-s0"), read(done, "dressed-s0"))
    assert "IDM-VTON draws without knowing the body's parts" in (done / "log.txt").read_text()


def test_catvton_reads_an_inpainting_model_and_its_own_attention(studio, tmp_path, tiny_scene):
    sd1 = write_pipeline(tmp_path / "sd1", "sd1")
    prior = load_folder(sd1, torch.device("cpu"))
    unet = widen_conv_in(prior.unet, 9)
    unet.save_pretrained(tmp_path / "inpainting/unet")
    write_attention(unet, tmp_path / "attention")
    method = {
        "kind": "cat_vton",
        "unet": str(tmp_path / "inpainting"),
        "attention": str(tmp_path / "attention"),
        "vae": str(sd1 / "vae"),
    }
    own = {"kind": "diffusers", "model": str(sd1)}
    done = run(studio, tmp_path, tiny_scene | {"method": method, "prior": own})
    assert same_outside(read(done, "person-s0"), read(done, "dressed-s0"))


def test_bootcomp_dresses_given_people_and_makes_some_up(studio, tmp_path, tiny_scene, sdxl):
    method = {**BOOTCOMP, "encoder": str(sdxl / "unet")}
    done = run(studio, tmp_path, tiny_scene | {"method": method})
    assert same_outside(read(done, "person-s0"), read(done, "dressed-s0"))
    shirt = tiny_scene["garments"][0]
    garments = [shirt, {**shirt, "category": "skirt", "caption": ""}]
    made_up = tiny_scene | {"method": method, "garments": garments, "person": None, "mask": None}
    done = run(studio, tmp_path, made_up)
    pictures = json.loads((done / "results.json").read_text())["pictures"]
    assert [one["name"] for one in pictures] == ["plain", "garment1", "garment2", "dressed"]
    assert pictures[-1]["difference"] > 0.0
    assert pictures[2]["caption"] == "skirt"
