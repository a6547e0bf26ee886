"""What `studio new` lists: every shipped preset, grouped by what it needs, in a few words each.

A preset's own comment says more, with papers and commands; these lines fit a terminal.
"""

from __future__ import annotations

__all__ = ["GROUPS"]

GROUPS: dict[str, dict[str, str]] = {
    "3D, run as installed": {
        "demo": "a toy object in minutes on two CPU cores",
        "pocket-dreamfusion": "DreamFusion: score distillation of one volume",
        "pocket-magic3d": "Magic3D: a volume, then a mesh",
        "pocket-mvdream": "MVDream: guided from several sides at once",
        "pocket-prolificdreamer": "ProlificDreamer: VSD, then the colours once more",
        "pocket-dreamflow": "DreamFlow: a volume, a mesh, and a mesh once more",
        "pocket-layout": "two objects, placed by the prior's attention",
        "pocket-objects": "two objects in boxes, each guided from all sides at once",
        "pocket-regional": "two objects in boxes, each told by its own prompt",
    },
    "Pictures, run as installed": {
        "text-to-image": "prompts drawn, also with what was taught",
        "edit-prompt-to-prompt": "edits by a changed prompt (Prompt-to-Prompt)",
        "edit-null-text": "the same for a picture of your own (null-text inversion)",
        "edit-dds": "edits by the difference of two prompts (delta denoising score)",
        "edit-instruct": "edits by an instruction (InstructPix2Pix)",
        "edit-self-guidance": "things are moved and resized (self-guidance)",
        "regional-rule": "two things, each in its part of the picture (RPG)",
        "style-aligned": "several things in one style (StyleAligned)",
    },
    "Run as installed, with a picture, a mesh or a finished run of yours": {
        "control-edges": "pictures along the edges of a photograph (ControlNet)",
        "control-uni": "pictures along any of several conditions (Uni-ControlNet)",
        "dreambooth3d": "your own subject in 3D from a few photos (DreamBooth3D)",
        "dreambooth3d-dco": "the same, with DCO in the place of DreamBooth",
        "pocket-delta-edit": "edits a run by its prompt (delta denoising score in 3D)",
        "pocket-instruct-nerf2nerf": "edits a run by an instruction (Instruct-NeRF2NeRF)",
        "pocket-instruct-sds": "edits a run by an instruction, by score distillation",
        "pocket-texture-mesh": "paints a mesh from a prompt",
        "pocket-texture-control": "the same under the mesh's depth (ControlNet)",
        "pocket-texture-uni": "the same under depth and normals (Uni-ControlNet)",
    },
    "Need weights of your own and a GPU": {
        "dreamfusion": "DreamFusion with Stable Diffusion 2.1",
        "magic3d": "Magic3D with Stable Diffusion 2.1",
        "mvdream": "MVDream with its public checkpoint",
        "mvdream-objects": "objects in boxes, with MVDream's public checkpoint",
        "prolificdreamer": "ProlificDreamer with Stable Diffusion 2.1",
        "dreamflow": "DreamFlow with Stable Diffusion 2.1 and the SDXL refiner",
        "dreambooth3d-sd": "your own subject in 3D with Stable Diffusion 2.1",
        "instruct-nerf2nerf": "edits a run by an instruction, with InstructPix2Pix",
        "instruct-sds": "the same by score distillation",
        "texture-mesh": "paints a mesh, with Stable Diffusion 1.5 and a ControlNet",
    },
    "Forms to fill in, with weights and pictures of your own": {
        "reference-ip-adapter": "pictures as prompts (IP-Adapter, Stable Diffusion 1.5)",
        "reference-kosmos-g": "pictures in a sentence (KOSMOS-G, Stable Diffusion 1.5)",
        "reference-ms-diffusion": "two subjects, each in its box (MS-Diffusion, SDXL)",
        "reference-instant-id": "a person from one photo (InstantID, SDXL)",
        "reference-photomaker": "a person from a few photos (PhotoMaker, SDXL)",
        "reference-3d": "an asset by reference pictures (IP-Adapter in DreamFusion)",
        "tryon-cat": "a person in another garment (CatVTON)",
        "tryon-idm": "a person in another garment (IDM-VTON)",
        "tryon-ladi": "a person in another garment (LaDI-VTON)",
        "tryon-stable-viton": "a person in another garment (StableVITON)",
        "tryon-bootcomp": "a new person in several garments (BootComp)",
    },
}
"""By what a preset needs: its name and what it makes."""
