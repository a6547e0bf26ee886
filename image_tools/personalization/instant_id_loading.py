"""From InstantID's configuration to a prior that draws a person.

prior = load_instant_id_prior(InstantIDConfig("~/models/InstantID", identity="me.npy",
                                              pose="pose.jpg"), prior)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.control.control_weights import read_controlnet
from image_tools.control.controlnet import Control
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.face_keypoints import draw_keypoints, draw_legacy_keypoints
from image_tools.personalization.instant_id import InstantIDPrior
from image_tools.personalization.instant_id_configs import InstantIDConfig
from image_tools.personalization.instant_id_files import read_instant_id
from image_tools.personalization.photos import load_photo
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.pocket.paths import adapter_path
from image_tools.vision.face_analyzers import build_face_analyzer
from image_tools.vision.faces import load_face_image, main_face
from image_tools.vision.identity_files import check_identity, read_raw_identity
from image_tools.vision.mesh_faces import MeshFaceAnalyzer

__all__ = ["load_instant_id_prior"]

# Faces are looked for at this size, whatever the prior's.
POSE_SIZE = 1024
# insightface's models that the public weights were trained with.
FACE_PACK = "antelopev2"


def load_instant_id_prior(config: InstantIDConfig, prior: DiffusionPrior) -> InstantIDPrior:
    """A prior with the weights, the person and the landmarks that a config names.

    Raises:
        WeightsMissing: something is absent or damaged; UnsafeWeights: an unsafe pickle.
        UnsupportedModel: weights of another denoiser, or another kind of embedding.
        PhotosError: a picture cannot be read; FaceNotFound: it shows no face.
    """
    device = prior.device
    folder = adapter_path(config.weights, role="InstantID")
    parts = read_instant_id(folder, prior.unet, prior.dtype)
    parts.adapter.to(device)
    parts.net.to(device)
    identity = _read_person(config, parts.identity_width, device)
    mask = None
    if config.mask is not None:
        mask = load_photo(config.mask, size=prior.image_size).mean(dim=-1).to(device)
    tool = InstantIDPrior(
        prior,
        parts,
        _keypoints(config, prior).to(device),
        scale=config.scale,
        control_scale=config.control_scale,
        mask=mask,
        others=_other_nets(config, prior),
        head=config.head,
    )
    with torch.no_grad():
        tool.show_identity(identity[None])
    return tool


def _read_person(
    config: InstantIDConfig, width: int, device: torch.device
) -> Float[Tensor, " width"]:
    """The embedding from a file, or the mean over photos."""
    if config.identity is not None:
        return read_raw_identity(config.identity, width=width).to(device)
    analyzer = build_face_analyzer(config.faces, device, pack=FACE_PACK)
    check_identity(torch.zeros(analyzer.width), width=width, source=f"faces '{config.faces.kind}'")
    found = [
        main_face(analyzer, load_face_image(path), name=path).embedding for path in config.photos
    ]
    return torch.stack(found).mean(dim=0).to(device)


def _keypoints(config: InstantIDConfig, prior: DiffusionPrior) -> Float[Tensor, "1 s s 3"]:
    """The drawing of the pose's landmarks; blank where a head replaces it."""
    size = (prior.image_size, prior.image_size)
    source = config.pose or next(iter(config.photos), None)
    if source is None:
        return torch.zeros(1, *size, 3)
    # Landmarks need no identity, so the shipped networks do where an identity came from a file.
    analyzer = (
        MeshFaceAnalyzer(device=prior.device)
        if config.identity is not None
        else build_face_analyzer(config.faces, prior.device, pack=FACE_PACK)
    )
    image = load_photo(source, size=POSE_SIZE, config=PhotosConfig(fit=config.fit))
    kps = main_face(analyzer, image, name=source).kps * (prior.image_size / POSE_SIZE)
    if config.drawing == "legacy":
        return draw_legacy_keypoints(kps, size)[None]
    return draw_keypoints(kps[None], size)


def _other_nets(config: InstantIDConfig, prior: DiffusionPrior) -> list[Control]:
    controls = []
    for number, net in enumerate(config.nets):
        path = adapter_path(net.weights, role=f"nets.{number}.weights")
        model = read_controlnet(replace(net, weights=str(path)), prior.dtype).to(prior.device)
        image = load_photo(net.image, size=prior.image_size)[None].to(prior.device)
        name = f"nets.{number}"
        controls.append(Control(model, image, net.strength, net.window, net.mode, name))
    return controls
